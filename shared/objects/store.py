"""The objects below one address, through obstore: listed, read whole, and written only under a condition.

Nothing is ever written without one: :meth:`Objects.create` fails where an object exists, :meth:`Objects.replace` where
it is no longer the one that was seen. Both are atomic, so they take the place of a rename and of a lock. An object is
sent in one request, so that none is ever half there.

Credentials come from the environment alone, as obstore and the clouds' own tools read them. The text of an error of the
storage may hold a signed address, so none of it is passed on: errors are told apart and said anew.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import DamagedError, PipelineError, UsageError
from .address import Address

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

MOST_BYTES = 5_000_000_000
"""The largest object that every storage takes in one request."""

TRIES = 4
"""How often a request is begun; obstore repeats each of them on a 5xx answer or a broken connection."""

_TIMEOUT = "10 minutes"
_RETRIES: Any = {
    "max_retries": 8,
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=10),
        "base": 2,
    },
    "retry_timeout": timedelta(minutes=3),
}


class TakenError(Exception):
    """The object exists already, or is no longer the one that was to be replaced."""


class Entry(NamedTuple):
    """Of an object: its size, and the tag that changes with its content."""

    bytes: int
    tag: str


class Objects:
    """The objects of one address; make it with :func:`connect`. Names are relative to the address.

    Every method raises PipelineError where the storage cannot be reached or refuses.
    """

    def __init__(self, store: Any, address: Address) -> None:
        self.store, self.address = store, address
        self._prefix = f"{address.key}/" if address.key else ""

    def below(self, folder: str = "") -> dict[str, Entry]:
        """Every object in a folder and its folders."""
        from obstore import list as list_all

        prefix = (self._prefix + folder).rstrip("/") or None

        def found() -> dict[str, Entry]:
            return {
                self._name(one["path"]): _entry(one) for page in list_all(self.store, prefix=prefix) for one in page
            }

        return self._ask(folder, found)

    def inside(self, folder: str = "") -> tuple[dict[str, Entry], list[str]]:
        """The objects directly in a folder, and the names of the folders there."""
        from obstore import list_with_delimiter

        prefix = (self._prefix + folder).rstrip("/") or None
        found = self._ask(folder, lambda: list_with_delimiter(self.store, prefix=prefix))
        objects = {self._name(one["path"]): _entry(one) for one in found["objects"]}
        return objects, [self._name(one).rpartition("/")[2] for one in found["common_prefixes"]]

    def read(self, name: str, most: int) -> tuple[np.ndarray, Entry]:
        """A whole object, as bytes in an array.

        Args:
            most: bytes that it may have.

        Raises:
            DamagedError: there is none, or it is larger.
        """
        import numpy as np
        from obstore import get

        def found() -> tuple[np.ndarray, Entry]:
            answer = get(self.store, self._prefix + name)
            entry = _entry(answer.meta)
            if entry.bytes > most:
                raise DamagedError(f"{self.address / name} has {entry.bytes:,} bytes, expected at most {most:,}")
            data = np.frombuffer(answer.bytes(), np.uint8)
            if len(data) != entry.bytes:
                raise ConnectionError(f"{len(data):,} of {entry.bytes:,} bytes arrived")
            return data, entry

        return self._ask(name, found)

    def create(self, name: str, parts: Sequence[np.ndarray | bytes]) -> Entry:
        """Writes an object that does not exist. Raises TakenError if it does, perhaps by a lost answer's try."""
        return self._put(name, parts, "create")

    def replace(self, name: str, parts: Sequence[np.ndarray | bytes], tag: str) -> Entry:
        """Writes an object in place of the one with this tag. Raises TakenError if it has another, or is gone."""
        return self._put(name, parts, {"e_tag": tag})

    def delete(self, name: str) -> None:
        """Deletes an object; there may be none."""
        from obstore import delete

        def done() -> None:
            try:
                delete(self.store, self._prefix + name)
            except FileNotFoundError:
                return

        self._ask(name, done)

    def _put(self, name: str, parts: Sequence[np.ndarray | bytes], mode: Any) -> Entry:
        from obstore import exceptions, put

        size = sum(len(part) for part in parts)
        if size > MOST_BYTES:
            raise UsageError(
                f"{self.address / name} would have {size:,} bytes, and an object has at most {MOST_BYTES:,}",
                "--set harvest.shard_rows=N with fewer rows",
            )

        def done() -> Entry:
            try:
                return Entry(
                    size, _tag(put(self.store, self._prefix + name, list(parts), mode=mode, use_multipart=False))
                )
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                raise TakenError(name) from None
            except FileNotFoundError:
                if mode == "create":
                    raise
                raise TakenError(name) from None

        return self._ask(name, done)

    def _name(self, path: str) -> str:
        return path.removeprefix(self._prefix)

    def _ask(self, name: str, request: Callable[[], T]) -> T:
        """The answer to a request, begun again where the connection broke."""
        from obstore import exceptions

        where = str(self.address / name) if name else str(self.address)
        for left in reversed(range(TRIES)):
            try:
                return request()
            except (PipelineError, TakenError):
                raise
            except FileNotFoundError:
                raise DamagedError(f"{where} is missing") from None
            except (exceptions.BaseError, ConnectionError, TimeoutError, ValueError) as error:
                if not left or not _passing(error):
                    raise _explained(where, self.address.scheme, error) from None
            time.sleep(0.2 * 2 ** (TRIES - left))
        raise AssertionError("unreachable")


def connect(address: Address) -> Objects:
    """The objects below an address. Nothing is sent before the first request.

    Raises:
        UsageError: obstore is not installed, or the environment's settings of the storage cannot be used.
    """
    return Objects(_store(address.scheme, address.bucket), address)


@cache
def _store(scheme: str, bucket: str) -> Any:
    try:
        from obstore import exceptions, store
    except ImportError:
        raise UsageError(
            f"{scheme}:// addresses need the package obstore", "pip install 'sparse-coder-pipeline[cloud]'"
        ) from None
    if scheme == "memory":
        return store.MemoryStore()
    classes: dict[str, Any] = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}
    # plain HTTP only where the environment says so, as obstore itself has it without options of ours
    plain = os.environ.get(_ALLOW_HTTP[scheme], "").lower() in ("1", "true")
    try:
        options = {"timeout": _TIMEOUT, "allow_http": plain}
        return classes[scheme](bucket, client_options=options, retry_config=_RETRIES)
    except (exceptions.BaseError, ValueError) as error:
        raise _explained(f"{scheme}://{bucket}", scheme, error) from None


def forget() -> None:
    """Reads the environment's settings of every storage again."""
    _store.cache_clear()


def _entry(meta: Any) -> Entry:
    return Entry(int(meta["size"]), _tag(meta))


def _tag(meta: Any) -> str:
    return str(meta["e_tag"] or meta["version"])


_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION; AWS_ENDPOINT_URL for another server than Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}


_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}


def _status(error: Exception) -> int | None:
    """The number of an HTTP answer in an error's text."""
    found = re.search(r"(?:status(?: code)?:? |Client error with status |status: )(\d{3})", str(error))
    return int(found[1]) if found else None


def _passing(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    from obstore import exceptions

    lasting = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, exceptions.NotSupportedError)
    if isinstance(error, lasting) or "orked process" in str(error):
        return False
    status = _status(error)
    return isinstance(error, (exceptions.GenericError, ConnectionError, TimeoutError)) and (
        status is None or status >= 500 or status in (408, 409, 429)
    )


def _explained(where: str, scheme: str, error: Exception) -> PipelineError:
    """What went wrong, without the storage's own words: they may hold a signed address."""
    from obstore import exceptions

    setting = f"set in the environment: {_ENVIRONMENT.get(scheme, '')}"
    text, status = str(error), _status(error)
    if "orked process" in text:
        return PipelineError(
            f"{where}: object storage cannot be read in a forked process",
            'start workers anew: DataLoader(…, multiprocessing_context="spawn")',
        )
    if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)) or status in (401, 403):
        return PipelineError(f"{where}: the storage refuses the credentials, or their right to do this", setting)
    if status == 404:
        return PipelineError(f"{where}: no such bucket", "create the bucket with the storage's own tool")
    if status is not None:
        return PipelineError(f"{where}: the storage answered with status {status}", "the same command again resumes")
    if isinstance(error, (exceptions.UnknownConfigurationKeyError, ValueError)) or "issing" in text[:80]:
        return PipelineError(f"{where}: the environment does not say how to reach the storage", setting)
    why = "did not answer in time" if "timed out" in text else "cannot be reached, or broke off"
    return PipelineError(f"{where}: the storage {why}", f"the same command again resumes; {setting}")
