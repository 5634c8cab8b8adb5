"""Addresses in object storage: ``s3://bucket/key``, as they pass through settings, commands and records as paths.

``pathlib`` writes two slashes as one, so a path of settings reads ``s3:/bucket/key``; both spellings are understood
everywhere, and :func:`spelled` gives the usual one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import UsageError

SCHEMES = {
    "s3": "Amazon S3 and servers of its protocol",
    "gs": "Google Cloud Storage",
    "az": "Azure Blob Storage (az://container/key)",
    "memory": "the memory of this process, for tests",
}

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+(.*)", re.DOTALL)
_PART = re.compile(r"[A-Za-z0-9][\w.=+-]*")


@dataclass(frozen=True)
class Address:
    """A place in a bucket.

    Attributes:
        scheme: one of SCHEMES.
        bucket: of Azure, the container.
        key: what the names of its objects begin with, without slashes at either end; may be empty.
    """

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    @property
    def path(self) -> Path:
        """The address as settings hold it."""
        return Path(str(self))

    @property
    def name(self) -> str:
        """Its last part."""
        return (self.key or self.bucket).rpartition("/")[2]

    @property
    def parent(self) -> Address:
        return Address(self.scheme, self.bucket, self.key.rpartition("/")[0])

    def __truediv__(self, name: str) -> Address:
        return Address(self.scheme, self.bucket, f"{self.key}/{name}" if self.key else name)


def address_of(path: PurePath | str) -> Address | None:
    """The address in object storage that a path spells; None for a path of this machine.

    Raises:
        UsageError: another scheme, or something that is no bucket and key. Text that may be a credential is not shown.
    """
    match = _URL.fullmatch(str(path))
    if match is None or match[1] == "file":
        return None
    scheme, (bucket, *parts) = match[1], match[2].rstrip("/").split("/")
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in (*SCHEMES, "file"))
        raise UsageError(f"{scheme}:// is not a storage that this program reads", f"a folder, or one of: {known}")
    if any(sign in match[2] for sign in "@?#"):
        raise UsageError(
            f"a {scheme}:// address holds a bucket and a key only; found one with @, ? or #",
            "give credentials in the environment (docs/object-storage.md)",
        )
    if not all(_PART.fullmatch(part) and ".." not in part for part in (bucket, *parts)):
        raise UsageError(
            f"{match[0][:200]!r} is not {scheme}://BUCKET/KEY with parts of letters, digits and . _ - = +",
            f"{scheme}://BUCKET/caches/NAME",
        )
    return Address(scheme, bucket, "/".join(parts))


def is_address(path: PurePath | str) -> bool:
    """Whether the path lies in object storage. Raises UsageError as :func:`address_of`."""
    return address_of(path) is not None


def settled(path: Path) -> Path:
    """A path of settings: ``file:///folder`` as that folder, an address as it is.

    Raises:
        ValueError: an address that cannot be used.
    """
    match = _URL.fullmatch(str(path))
    if match is not None and match[1] == "file":
        return Path("/" + match[2])
    try:
        address_of(path)
    except UsageError as error:
        raise ValueError(f"{error.message}; {error.hint}") from None
    return path


def on_this_machine(setting: str, path: Path) -> Path:
    """As :func:`settled`, of a setting that takes no address.

    Raises:
        ValueError: it is an address.
    """
    if is_address(path := settled(path)):
        raise ValueError(
            f"{setting}: {spelled(path)} lies in object storage, which holds activation caches only; give a folder, "
            "and copy what is finished with the storage's own tool (docs/object-storage.md)"
        )
    return path


def spelled(path: PurePath) -> str:
    """A path as text, an address with both its slashes."""
    match = _URL.fullmatch(str(path))
    return str(path) if match is None or match[1] == "file" else f"{match[1]}://{match[2]}"
