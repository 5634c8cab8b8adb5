"""Durable files: written under a temporary name, synced, renamed. A file under its final name is always complete.

The order matters. Renaming before the fsync could leave, after a power cut, the final name on a file whose data never
reached the disk. The rename itself survives a power cut only once its folder is synced (:func:`sync_folder`).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, cast

import google_crc32c
import numpy as np

from ..errors import DamagedError, PipelineError, UsageError, VersionError, repair_command
from ..explain import explained
from ..untrusted import DOCUMENT_BYTES

_FULL = (errno.ENOSPC, errno.EDQUOT)

_DAMAGE = (errno.EIO, errno.EBADMSG, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ENOENT, errno.ENOTDIR)
"""Errors of reading that are about the file; any other is about the process, its rights or the machine."""

SEAL = "seal"
"""Key of a sealed JSON file: the sha256 of the file with this value replaced by 64 zeros."""

_NO_SEAL = "0" * 64

_HASHED_BYTES = 4 << 20
"""Bytes hashed at a time before they are written: few enough to stay in the processor's cache."""

PARTIAL = ".partial"
"""Suffix of a file that is being written. No reader opens one; a writer deletes leftovers when it starts."""


def crc32c(data: np.ndarray | bytes, start: int = 0) -> int:
    """CRC-32C (Castagnoli) of the bytes, continued from ``start``. An array's are computed without the GIL."""
    extend = _crc32c_extend()
    if extend is not None and isinstance(data, np.ndarray) and data.size:
        flat = data.reshape(-1).view(np.uint8)
        return extend(start, flat.ctypes.data, flat.size)
    # the C extension takes any read-only or plain contiguous buffer; its annotation says bytes
    return int(google_crc32c.extend(start, data))


@cache
def _crc32c_extend() -> Callable[[int, int, int], int] | None:
    """The C function behind google_crc32c, which holds the GIL while it calls it; None where it is not exported."""
    with suppress(OSError, AttributeError, ImportError):
        from google_crc32c import _crc32c

        extend = ctypes.CDLL(_crc32c.__file__).crc32c_extend
        extend.restype, extend.argtypes = ctypes.c_uint32, (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
        return cast(Callable[[int, int, int], int], extend)
    return None


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The array's memory in C order as uint8, without a copy when it already is contiguous and little-endian."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8)


def write_file(path: Path, parts: Sequence[np.ndarray | bytes]) -> None:
    """Writes the parts, concatenated, as ``path``: temporary name, fsync, rename. Does *not* sync the folder.

    Raises:
        PipelineError: the disk (or the quota) is full; the temporary file is removed, everything else stays.
    """
    _write(path, parts, None)


def write_hashed(path: Path, parts: Sequence[np.ndarray | bytes]) -> str:
    """As :func:`write_file`; the sha256 of the file, computed from each piece in memory as it is written."""
    digest = hashlib.sha256()
    _write(path, parts, digest)
    return digest.hexdigest()


def _write(path: Path, parts: Sequence[np.ndarray | bytes], digest: Any) -> None:
    partial = path.with_name(path.name + PARTIAL)
    with explained_full_disk(path, sum(len(part) for part in parts), partial):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            for part in parts:
                if len(part):  # memoryview cannot cast an empty array
                    whole = memoryview(cast(Any, part)).cast("B")
                    step = len(whole) if digest is None else _HASHED_BYTES
                    for at in range(0, len(whole), step):
                        piece = whole[at : at + step]
                        if digest is not None:
                            digest.update(piece)
                        write_all(descriptor, piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)


def write_all(descriptor: int, data: memoryview) -> None:
    """``os.write`` until everything is written (one call writes at most 2 GiB)."""
    while len(data):
        data = data[os.write(descriptor, data) :]


def write_json(path: Path, value: Any) -> None:
    """Writes sorted, indented JSON durably (file and folder synced): equal values give equal bytes."""
    write_file(path, [json_bytes(value)])
    sync_folder(path.parent)


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_file(path: Path, hint: str | None = None, most: int | None = None) -> bytes:
    """The bytes of a regular file of a cache or run.

    A folder somebody else made may hold a pipe or a device under any name; opening one could wait forever.

    Args:
        hint: the command to run next; None: the one that repairs the cache or run that the file is in.
        most: bytes that it may have.

    Raises:
        DamagedError: it is missing, is not a regular file, has more bytes, or the disk cannot read it.
        PipelineError: the system does not let this process read it.
    """
    hint = hint or repair_command(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise DamagedError(f"{path} is not a regular file", hint)
            if most is not None and found.st_size > most:
                raise DamagedError(f"{path} has {found.st_size:,} bytes, expected at most {most:,}", hint)
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{path} is missing", hint) from None
    except OSError as error:
        raise unreadable(path, error, hint) from None


def unreadable(path: Path, error: OSError, hint: str | None = None) -> PipelineError:
    """The error for a file that cannot be read. Only one of the file itself is damage, which a repair may drop."""
    if error.errno in _DAMAGE:
        return DamagedError(f"{path} cannot be read: {error.strerror}", hint or repair_command(path))
    error.filename = str(path)
    return explained(error, "the same command") or PipelineError(f"{path} cannot be read: {error}")


def read_json(path: Path, hint: str | None = None) -> Any:
    """Parses a JSON file of a cache or run. Raises DamagedError: as :func:`read_file`, or it is not JSON."""
    return _parsed(path, read_file(path, hint, DOCUMENT_BYTES), hint)


def sealed_bytes(value: Mapping[str, Any]) -> bytes:
    """The JSON document with its seal: a file that proves itself, whatever else is damaged."""
    blank = json_bytes({**value, SEAL: _NO_SEAL})
    place = f'"{SEAL}": "%s"'
    return blank.replace((place % _NO_SEAL).encode(), (place % hashlib.sha256(blank).hexdigest()).encode(), 1)


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """As :func:`write_json`, with a seal."""
    write_file(path, [sealed_bytes(value)])
    sync_folder(path.parent)


def read_sealed(path: Path, hint: str | None = None, version: int | None = None) -> dict[str, Any]:
    """A sealed JSON file, without its seal.

    Args:
        version: the `format_version` that it must have; earlier ones had no seal.

    Raises:
        VersionError: it has another.
        DamagedError: as :func:`read_json`, or the bytes are not those that were sealed.
    """
    data = read_file(path, hint, DOCUMENT_BYTES)
    parsed = _parsed(path, data, hint)
    value: dict[str, Any] = parsed if isinstance(parsed, dict) else {}
    seal = value.pop(SEAL, None)
    if seal is None and version is not None and value.get("format_version") != version:
        raise _other_version(path, value, version)
    if not isinstance(seal, str) or len(seal) != len(_NO_SEAL) or not seal.isascii():
        raise DamagedError(
            f"{path} is damaged: it carries no sha256 of itself ({SEAL!r})", hint or repair_command(path)
        )
    found = hashlib.sha256(data.replace(seal.encode(), _NO_SEAL.encode())).hexdigest()
    if found != seal:
        raise DamagedError(f"{path} is damaged: sha256 {found}, expected {seal}", hint or repair_command(path))
    if version is not None and value.get("format_version") != version:
        raise _other_version(path, value, version)
    return value


def _other_version(path: Path, value: Mapping[str, Any], version: int) -> VersionError:
    return VersionError(
        f"{path} has format version {value.get('format_version')!r}, expected {version}",
        "read it with the program version that wrote it, or make it again",
    )


def _parsed(path: Path, data: bytes, hint: str | None) -> Any:
    try:
        return json.loads(data, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not valid JSON: {error}", hint or repair_command(path)) from None


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def below(folder: Path, name: object) -> Path:
    """The path below ``folder`` that a document in it names, whatever is there.

    Raises:
        DamagedError: the name leads out of the folder, links in its parents resolved.
    """
    if not isinstance(name, str) or not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DamagedError(f"{folder}: {name!r} does not name a file in this folder", repair_command(folder))
    path = folder / name
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise DamagedError(f"{path} is not in {folder}: a link leads out of it", repair_command(folder))
    return path


def inside(folder: Path, name: object) -> Path:
    """The path of a file that a document in ``folder`` names.

    Raises:
        DamagedError: the name is not that of a regular file below the folder, links resolved.
    """
    path = below(folder, name)
    if path.exists() and not (path.is_file() and path.resolve().is_relative_to(folder.resolve())):
        raise DamagedError(f"{path} is not a regular file in {folder}", repair_command(folder))
    return path


def sync_folder(folder: Path) -> None:
    """Makes the renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SharedSync:
    """Syncs folders for threads that wait at the same time: one sync serves every rename made before it began."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._states: dict[Path, _Syncs] = {}

    def sync(self, folder: Path) -> None:
        """As :func:`sync_folder`: on return every rename that the caller made in the folder is on disk."""
        with self._guard:
            state = self._states.setdefault(folder, _Syncs())
            state.asked += 1
            mine = state.asked
        with state.lock:
            if state.done >= mine:  # a sync that began after this call has ended
                return
            with self._guard:
                serves = state.asked
            sync_folder(folder)
            state.done = serves


class _Syncs:
    """Of one folder: how many were requested, and how many of those are on disk."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = self.done = 0


def sync_tree(folder: Path) -> None:
    """Makes a folder and everything below it survive a power cut."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def explained_full_disk(path: Path, needed: int, partial: Path | None = None) -> Iterator[None]:
    """Turns "no space left on device" into a PipelineError with the numbers; removes the partial file on any error."""
    try:
        yield
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        if error.errno not in _FULL:
            if error.errno is not None and error.filename is None:
                error.filename = str(path)
            raise
        free = shutil.disk_usage(path.parent).free
        raise PipelineError(
            f"the disk is full: {path} needs {needed:,} bytes, {free:,} are free. All earlier commits are intact",
            hint="free some space and run the same command again: it resumes",
        ) from error


def make_folder(path: Path, setting: str) -> None:
    """Creates a folder and its parents unless they exist.

    Raises:
        UsageError: the folder cannot be created; names the setting it comes from.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise UsageError(f"{setting}: cannot create {path}: {error.strerror}", f"--set {setting}=FOLDER") from None


def partial_files(folder: Path) -> Iterator[Path]:
    """Leftovers of an interrupted writer, ours and Zarr's."""
    for path in sorted(folder.rglob("*" + PARTIAL)):
        if path.is_file():
            yield path
