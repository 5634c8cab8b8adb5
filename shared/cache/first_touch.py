"""Each chunk file is compared with its commit when a process first reads it: nothing is computed from damaged rows.

The file is read in pieces with `preadv` (which leaves it in the system's cache for whoever reads it next) and summed
without the GIL. A file is compared again only if it has changed since.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import DataError, repair_command
from .files import crc32c, unreadable
from .format import StoredArray

PIECE_BYTES = 4 << 20
"""Bytes read at a time."""

_compared: set[tuple[int, int, int, int, int]] = set()
_buffers = threading.local()


def compare_once(file: Path, array: StoredArray, crc: int, beyond_memory: bool = False) -> None:
    """Compares a chunk file's payload with the checksum in its commit, unless this process has done so.

    Args:
        beyond_memory: drop the file from the system's cache behind the reading.

    Raises:
        DataError: it differs, or cannot be read.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(file, error, repair_command(file.parent.parent.parent)) from None
    try:
        compare_descriptor(descriptor, file, array, crc, beyond_memory)
    finally:
        os.close(descriptor)


def compare_descriptor(descriptor: int, file: Path, array: StoredArray, crc: int, beyond_memory: bool = False) -> None:
    """As :func:`compare_once`, of a chunk file that is open."""
    hint = repair_command(file.parent.parent.parent)
    try:
        status = os.fstat(descriptor)
        if (key := _key(status, crc)) in _compared:
            return
        if not stat.S_ISREG(status.st_mode) or status.st_size != array.file_bytes:
            raise DataError(f"{file} has {status.st_size:,} bytes, expected {array.file_bytes:,}", hint)
        found = _payload_crc(descriptor, array.payload_bytes)
        if beyond_memory:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise unreadable(file, error, hint) from None
    if found != crc:
        raise DataError(f"{file} is damaged: crc32c {found:08x}, its commit has {crc:08x}", hint)
    _compared.add(key)


def vouch(descriptor: int, crc: int) -> None:
    """Notes that an open file, written whole by this process, has this checksum."""
    _compared.add(_key(os.fstat(descriptor), crc))


def _key(status: os.stat_result, crc: int) -> tuple[int, int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, crc


def compare_sha256_once(file: Path, sha256: str) -> None:
    """As :func:`compare_once`, of a whole file: documents, tokenizer. Raises DataError."""
    try:
        with file.open("rb") as data:
            status = os.fstat(data.fileno())
            if (key := _key(status, int(sha256, 16))) in _compared:
                return
            found = hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:
        raise DataError(f"{file} cannot be read: {error}", repair_command(file)) from None
    if found != sha256:
        raise DataError(f"{file} is damaged: sha256 {found}, the manifest has {sha256}", repair_command(file))
    _compared.add(key)


def _payload_crc(descriptor: int, n_bytes: int) -> int:
    if not hasattr(_buffers, "piece"):
        _buffers.piece = np.empty(PIECE_BYTES, np.uint8)
    piece, crc, at = _buffers.piece, 0, 0
    while at < n_bytes:
        count = os.preadv(descriptor, [memoryview(piece)[: min(PIECE_BYTES, n_bytes - at)]], at)
        if not count:
            return ~crc & 0xFFFFFFFF  # cut short while it was read: no checksum matches
        crc, at = crc32c(piece[:count], crc), at + count
    return crc


class Comparisons:
    """First touches off the hot path: a thread compares files while training reads on.

    Nothing that depends on the rows is kept (a checkpoint, a result) before :meth:`wait` has returned.

    Args:
        compare: compares one array of one shard; raises DataError.
    """

    def __init__(self, compare: Callable[[str, int], None]) -> None:
        self._compare = compare
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="first-touch")
        self._lock = threading.Lock()
        self._begun: set[tuple[str, int]] = set()
        self._pending: list[Future[None]] = []

    def touch(self, array: str, shard: int) -> None:
        """Begins the comparison, the first time that a file is named. Called from any thread."""
        with self._lock:
            if (array, shard) not in self._begun:
                self._begun.add((array, shard))
                self._pending.append(self._thread.submit(self._compare, array, shard))

    def poll(self) -> None:
        """Raises the DataError of a comparison that has failed so far."""
        with self._lock:
            done = [one for one in self._pending if one.done()]
            self._pending = [one for one in self._pending if not one.done()]
        for one in done:
            one.result()

    def wait(self) -> None:
        """Returns when every file touched so far is known to be as its commit says. Raises DataError."""
        with self._lock:
            pending, self._pending = self._pending, []
        for one in pending:
            one.result()

    def close(self) -> None:
        """Gives up what has not begun."""
        self._thread.shutdown(wait=True, cancel_futures=True)
