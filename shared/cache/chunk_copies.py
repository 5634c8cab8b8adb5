"""Copies of the chunk files of a cache in a bucket: fetched whole when they are first read, the next ones before that.

A chunk file is compared with its commit when it arrives and when a process first reads it; a copy that differs is
fetched again. All copies of a machine take a bounded room (shared.objects.room).
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from ..errors import DamagedError, DataError, PipelineError, UsageError
from ..objects.room import DOWNLOAD, Room, touch
from ..objects.store import Objects, TakenError
from .files import crc32c, write_all
from .first_touch import compare_descriptor, vouch
from .format import ARRAYS, StoredArray

THREADS = 16
AHEAD_BYTES = 64 << 20
"""Of an array's chunk files, about so many bytes are fetched before they are read; at least 2 files, at most 32."""


class ChunkCopies:
    """The chunk files of one cache.

    Attributes:
        folder: the copies: ``acts.zarr`` of the mirror.
        room: how much they may take.
    """

    def __init__(self, folder: Path, objects: Objects, room: Room) -> None:
        self.folder, self.room = folder, room
        self._objects, self._address = objects, objects.address / ARRAYS
        self._guard = threading.Lock()
        self._idle = threading.Condition(self._guard)
        self._begun: set[str] = set()

    def open(self, array: StoredArray, shard: int, crc: int, checksums: bool = True) -> int:
        """A descriptor of the copy of a chunk file, fetched if it is not here. It stays readable after an eviction.

        Args:
            crc: of the payload, from the commit.
            checksums: compare a copy that is here already, the first time that this process reads it.

        Raises:
            DataError: what the bucket holds is not what the commit says.
        """
        file = self.folder / array.file(shard)
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return self._fetched(array, shard, crc)
        try:
            if checksums:
                compare_descriptor(descriptor, file, array, crc)
            touch(file, descriptor)
        except BaseException as error:
            os.close(descriptor)
            if not isinstance(error, DataError):
                raise
            file.unlink(missing_ok=True)  # the bucket's own is what counts
            return self._fetched(array, shard, crc)
        return descriptor

    def ahead(self, array: StoredArray, shards: Iterable[int], crc_of: Callable[[int], int]) -> None:
        """Begins to fetch the files of these shards in the background, as many as are worth it."""
        depth = min(32, max(2, AHEAD_BYTES // array.file_bytes))
        for shard, _ in zip(shards, range(depth), strict=False):
            name = array.file(shard)
            with self._guard:
                if name in self._begun or (self.folder / name).exists():
                    continue
                self._begun.add(name)
                self._threads.submit(self._fetch_ahead, array, shard, crc_of)

    def wait(self) -> None:
        """Returns when nothing is being fetched in the background."""
        with self._idle:
            self._idle.wait_for(lambda: not self._begun)

    def read(self, array: StoredArray, shard: int) -> np.ndarray:
        """A chunk file from the bucket itself, unchecked: the bytes of whatever is there.

        Raises:
            DamagedError: nothing is, or more than a chunk file has.
        """
        return self._objects.read(f"{ARRAYS}/{array.file(shard)}", array.file_bytes)[0]

    def here(self, array: StoredArray) -> int:
        """Copies of an array's chunk files on this machine."""
        with suppress(FileNotFoundError):
            return sum(name.name.startswith("c.") for name in os.scandir(self.folder / array.name))
        return 0

    def sizes(self) -> dict[str, int]:
        """Path below ``acts.zarr`` → bytes, of every object there."""
        return {name.removeprefix(f"{ARRAYS}/"): one.bytes for name, one in self._objects.below(ARRAYS).items()}

    def put(self, array: StoredArray, shard: int, parts: Sequence[np.ndarray | bytes], crc: int) -> np.ndarray | None:
        """Creates a chunk file in the bucket. None if it holds these bytes now; else the payload that is there instead.

        Args:
            parts: payload and trailer.
            crc: of the payload.

        Raises:
            DataError: what is there is no chunk file of this array.
        """
        name = array.file(shard)
        try:
            self._objects.create(f"{ARRAYS}/{name}", parts)
        except TakenError:
            data = self.read(array, shard)
            payload = data[: array.payload_bytes]
            found = crc32c(payload)
            if len(data) != array.file_bytes or data[array.payload_bytes :].tobytes() != array.trailer(found):
                raise DamagedError(
                    f"{self._address / name} has no commit, and is no chunk file of this cache",
                    "delete that object with the storage's own tool; the same command writes it again",
                ) from None
            self._keep(array, shard, [data], found)
            return None if found == crc else payload
        self._keep(array, shard, parts, crc)
        return None

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")

    def _fetch_ahead(self, array: StoredArray, shard: int, crc_of: Callable[[int], int]) -> None:
        try:
            with suppress(PipelineError):  # whoever reads the shard gets the error
                os.close(self._fetched(array, shard, crc_of(shard)))
        finally:
            with self._guard:
                self._begun.discard(array.file(shard))
                self._idle.notify_all()

    def _fetched(self, array: StoredArray, shard: int, crc: int) -> int:
        """A descriptor of a chunk file that is fetched now, by this thread or by another that began earlier."""
        with self._downloading(array, shard) as (file, descriptor, partial):
            if partial is None:
                return descriptor
            self.room.make(array.file_bytes)
            data = self.read(array, shard)
            if len(data) != array.file_bytes:
                raise DamagedError(
                    f"{self._address / array.file(shard)} has {len(data):,} bytes, expected {array.file_bytes:,}",
                    f"pipeline verify {self._objects.address}",
                )
            if (found := crc32c(data[: array.payload_bytes])) != crc:
                raise DamagedError(
                    f"{self._address / array.file(shard)} is damaged: crc32c {found:08x}, its commit has {crc:08x}",
                    f"pipeline verify {self._objects.address}",
                )
            self._finish_download(file, descriptor, partial, [data], crc)
            os.lseek(descriptor, 0, os.SEEK_SET)
            return os.dup(descriptor)

    def _keep(self, array: StoredArray, shard: int, parts: Sequence[np.ndarray | bytes], crc: int) -> None:
        """Keeps what was just put into the bucket, where there is room: it is read again to finish the cache."""
        with suppress(OSError, UsageError), self._downloading(array, shard) as (file, descriptor, partial):
            if partial is None:
                os.close(descriptor)
                return
            self.room.make(array.file_bytes)
            self._finish_download(file, descriptor, partial, parts, crc)

    @contextmanager
    def _downloading(self, array: StoredArray, shard: int) -> Iterator[tuple[Path, int, Path | None]]:
        """(the file, a descriptor, the name it is written under). Without that name the file is here, and the
        descriptor, the caller's, is of it; else it is of a new file under that name, which no other thread or process
        writes, and which is gone at the end unless it was renamed."""
        file = self.folder / array.file(shard)
        partial = file.with_name(file.name + DOWNLOAD)
        file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for whoever fetches it now
            here = _opened(file)
            if here is not None:
                _unlink_own(partial, descriptor)
                os.close(descriptor)
                yield file, here, None
                return
            if _is(partial, descriptor):
                break
            os.close(descriptor)  # it was renamed, and evicted since
        try:
            os.ftruncate(descriptor, 0)
            yield file, descriptor, partial
        finally:
            _unlink_own(partial, descriptor)
            os.close(descriptor)

    def _finish_download(
        self, file: Path, descriptor: int, partial: Path, parts: Sequence[np.ndarray | bytes], crc: int
    ) -> None:
        for part in parts:
            if len(part):
                write_all(descriptor, memoryview(cast("bytes", part)).cast("B"))
        vouch(descriptor, crc)
        partial.replace(file)


def payload_rows(payload: np.ndarray, array: StoredArray, n: int) -> np.ndarray:
    """The first ``n`` steps along the first axis of a payload, as the array's numbers."""
    rows: np.ndarray = np.ascontiguousarray(payload).view(array.dtype).reshape(array.shard)[:n]
    return rows


def _opened(file: Path) -> int | None:
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None


def _is(file: Path, descriptor: int) -> bool:
    """Whether the file of this name is the one that is open."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), file.stat(follow_symlinks=False))
    return False


def _unlink_own(file: Path, descriptor: int) -> None:
    if _is(file, descriptor):
        file.unlink(missing_ok=True)
