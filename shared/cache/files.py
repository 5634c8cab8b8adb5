"""Durable files: written under a temporary name, synced, renamed. A file under its final name is always complete.

The order matters. Renaming before the fsync could leave, after a power cut, the final name on a file whose data never
reached the disk. The rename itself survives a power cut only once its folder is synced (:func:`sync_folder`).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np

from ..errors import DataError, PipelineError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT)

PARTIAL = ".partial"
"""Suffix of a file that is being written. No reader opens one; a writer deletes leftovers when it starts."""


def crc32c(data: np.ndarray | bytes, start: int = 0) -> int:
    """CRC-32C (Castagnoli) of the bytes, continued from ``start``."""
    # the C extension takes any read-only or plain contiguous buffer; its annotation says bytes
    return int(google_crc32c.extend(start, data))


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The array's memory in C order as uint8, without a copy when it already is contiguous and little-endian."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8)


def write_file(path: Path, parts: Sequence[np.ndarray | bytes]) -> None:
    """Writes the parts, concatenated, as ``path``: temporary name, fsync, rename. Does *not* sync the folder.

    Raises:
        PipelineError: the disk (or the quota) is full; the temporary file is removed, everything else stays.
    """
    partial = path.with_name(path.name + PARTIAL)
    with explained_full_disk(path, sum(len(part) for part in parts), partial):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            for part in parts:
                if len(part):  # memoryview cannot cast an empty array
                    write_all(descriptor, memoryview(cast(Any, part)).cast("B"))
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


def read_json(path: Path) -> Any:
    """Parses a JSON file of a cache.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing", hint=f"pipeline verify {path.parent}") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}", hint=f"pipeline verify {path.parent}") from None


def sync_folder(folder: Path) -> None:
    """Makes the renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
