"""Reads blocks of rows from chunk files into pools: a few threads, `preadv` straight into place.

A pool is one preallocated tensor for each stored array: a site's rows, or a quantised site's codes and scales. Rows are
dequantised when they are drawn. On the CPU the threads read into it. On a CUDA device they read into pinned staging
buffers, and each filled buffer is copied to the pool on a stream of its own while the next one is read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shared.cache import Cache, SiteSpec
from ...shared.cache.first_touch import Comparisons
from ...shared.cache.joint import joined
from ...shared.cache.reader import logical_rows, stored_dtype
from ...shared.errors import DataError, repair_command
from ...shared.joint_names import parts_of, stored_sites

TASK_BYTES = 1 << 20
"""Least work of a thread: less than this takes no longer on one than on two."""

SEGMENT_BYTES = 8 << 20
"""Neighbouring blocks are read together up to this size: long enough for any disk, short enough for many threads."""

STAGING_BYTES = 64 << 20
"""Size of each of the two host buffers between the disk and a device."""


class ClosedError(Exception):
    """The stream was closed while a window was being read."""


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one shard and their place in the pool."""

    shard: int
    first: int  # row within the shard
    rows: int
    slot: int


@dataclass
class Pool:
    """Rows in memory.

    Attributes:
        arrays: stored array → [capacity, …], in the stored dtype.
        sites: the sites that the arrays belong to.
        wanted: the sites that are drawn: those, or joint ones of them.
        last_use: on CUDA, an event behind the device's last read of them, awaited before refilling.
    """

    arrays: dict[str, Tensor]
    sites: tuple[SiteSpec, ...]
    wanted: tuple[str, ...]
    last_use: torch.cuda.Event | None = field(default=None)

    @classmethod
    def allocate(cls, cache: Cache, sites: Sequence[str], rows: int, device: torch.device) -> Pool:
        specs = tuple(cache.spec(site) for site in stored_sites(sites))
        return cls(_empty(cache, sites, rows, device), specs, tuple(sites))

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.arrays.values())

    def gather(self, slots: Tensor) -> dict[str, Tensor]:
        """Copies rows out: site → [len(slots), d] in its logical dtype."""
        if slots.device.type != "cpu":
            stored = {name: tensor.index_select(0, slots) for name, tensor in self.arrays.items()}
        else:
            # NumPy copies whole rows on this thread; a parallel region of torch's would take longer to begin than to
            # work, many times longer while the cores are busy
            rows = slots.numpy()
            stored = {name: take_rows(tensor, rows) for name, tensor in self.arrays.items()}
        acts = {spec.name: logical_rows(stored, spec) for spec in self.sites}
        return {site: joined([acts[part] for part in parts_of(site)]) for site in self.wanted}

    def mark_used(self) -> None:
        """Records on the current CUDA stream that everything enqueued so far may still read the pool."""
        device = next(iter(self.arrays.values())).device
        if device.type == "cuda":
            self.last_use = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.last_use.record(torch.cuda.current_stream(device))

    def wait_unused(self) -> None:
        if self.last_use is not None:
            self.last_use.synchronize()
            self.last_use = None


class BlockReader:
    """Fills pools with rows of a cache.

    Args:
        cache: the cache.
        sites: which sites; of a joint one, its parts.
        device: where the pools lie.
        workers: reading threads.
        beyond_memory: the data are larger than memory, so the file cache will have dropped each page before it is
            needed again. The kernel is told not to read ahead of a block and to drop its pages after (measured with
            blocks of 590 kB, 30 % of a file at a time: with reading ahead, it read 1.93 times the requested bytes).
        staging_bytes: read through host buffers of this size even if the pools lie on the CPU; None: only for a device,
            with STAGING_BYTES.

    Attributes:
        comparisons: of the chunk files read so far with their commits; None: switched off.
    """

    def __init__(
        self,
        cache: Cache,
        sites: Sequence[str],
        device: torch.device,
        workers: int,
        *,
        beyond_memory: bool = False,
        staging_bytes: int | None = None,
    ) -> None:
        self.cache, self.sites, self.device = cache, stored_sites(sites), device
        self._beyond_memory, self._workers = beyond_memory, workers
        self.comparisons = None
        if cache.checksums:
            self.comparisons = Comparisons(lambda name, shard: cache.compare(name, shard, beyond_memory))
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="block-reader")
        self._cancelled = threading.Event()
        names = [name for site in self.sites for name in cache.spec(site).arrays]
        self._row_bytes = {name: cache.layout.arrays[name].row_bytes for name in names}
        staged = staging_bytes is not None or device.type != "cpu"
        self._staging = _Staging(cache, self.sites, device, staging_bytes or STAGING_BYTES) if staged else None

    def segment_blocks(self, block_rows: int) -> int:
        """How many neighbouring blocks make one read."""
        return max(1, SEGMENT_BYTES // (block_rows * max(self._row_bytes.values())))

    def submit(self, pool: Pool, segments: Sequence[Segment]) -> list[Future[None]]:
        """Begins to fill a pool; :meth:`wait` for what this returns. With staging it reads at once."""
        pool.wait_unused()
        if self._staging is None:
            views = {name: _bytes_of(tensor) for name, tensor in pool.arrays.items()}
            return self._read(segments, views, base_slot=0)
        try:
            for piece, buffer in self._staging.pieces(segments):
                base = piece[0].slot
                self.wait(self._read(piece, buffer.views, base))
                self._staging.copy(buffer, pool, base, piece[-1].slot + piece[-1].rows - base)
        finally:
            self._staging.finish()  # after an error too: the pool may be freed next
        return []

    def warm(self, segments: Sequence[Segment]) -> list[Future[None]]:
        """Begins to read rows and drops what it reads: they are then in the system's cache of file pages."""
        return self._read(segments, None, base_slot=0)

    def wait(self, futures: Sequence[Future[None]]) -> None:
        for future in futures:
            future.result()

    def close(self) -> None:
        self._cancelled.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self.comparisons is not None:
            self.comparisons.close()

    def _read(
        self, segments: Sequence[Segment], views: dict[str, NDArray[np.uint8]] | None, base_slot: int
    ) -> list[Future[None]]:
        """Shares the bytes out to all threads, whatever files they are in. Without `views` what is read is dropped."""
        by_shard: dict[int, list[Segment]] = {}
        for segment in segments:
            by_shard.setdefault(segment.shard, []).append(segment)
        total = sum(segment.rows for segment in segments) * sum(self._row_bytes.values())
        most = max(TASK_BYTES, -(-total // self._workers))
        return [
            self._threads.submit(self._read_file, name, shard, share, None if views is None else views[name], base_slot)
            for shard, group in by_shard.items()
            for name, size in self._row_bytes.items()
            for share in shares(group, max(1, most // size))
        ]

    def _read_file(
        self, name: str, shard: int, segments: list[Segment], view: NDArray[np.uint8] | None, base_slot: int
    ) -> None:
        if self._cancelled.is_set():
            raise ClosedError
        if self.comparisons is not None:
            self.comparisons.touch(name, shard)
        size = self._row_bytes[name]
        descriptor = self.cache.open_chunk(name, shard)
        try:
            if self._beyond_memory:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            # preadv may return fewer bytes than requested: `at` is the next byte of the file, `target` what is still to
            # be filled. Segments have different slots, so threads write to different bytes of the pool.
            room = None if view is not None else np.empty(max(one.rows for one in segments) * size, np.uint8)
            for segment in segments:
                start = 0 if view is None else (segment.slot - base_slot) * size
                target = memoryview(cast(Any, room if view is None else view)[start : start + segment.rows * size])
                at = segment.first * size
                while len(target):
                    count = os.preadv(descriptor, [target], at)
                    if count == 0:
                        found = os.fstat(descriptor).st_size
                        raise DataError(
                            f"{self.cache.chunk_file(name, shard)[0]} has {found:,} bytes, expected "
                            f"{at + len(target):,} or more",
                            hint=repair_command(self.cache.path),
                        )
                    target, at = target[count:], at + count
                if self._beyond_memory:
                    os.posix_fadvise(descriptor, at - segment.rows * size, segment.rows * size, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def shares(segments: Sequence[Segment], most: int) -> list[list[Segment]]:
    """The segments of a file, cut into lists of at most `most` rows, in their order."""
    found: list[list[Segment]] = []
    room = 0
    for segment in segments:
        done = 0
        while done < segment.rows:
            if not room:
                found.append([])
                room = most
            n = min(room, segment.rows - done)
            found[-1].append(Segment(segment.shard, segment.first + done, n, segment.slot + done))
            done, room = done + n, room - n
    return found


@dataclass
class _Buffer:
    tensors: dict[str, Tensor]
    views: dict[str, NDArray[np.uint8]]
    copied: torch.cuda.Event | None = None


class _Staging:
    """Two host buffers between the disk and a device pool, pinned for CUDA, filled and copied in turn.

    While one is copied to the device the threads fill the other. A buffer is refilled only after the event recorded
    behind its copy (`_free`); both copies run on one CUDA stream of their own, and `finish` waits for it before anyone
    reads the pool.
    """

    def __init__(self, cache: Cache, sites: Sequence[str], device: torch.device, staging_bytes: int) -> None:
        self._cuda = device.type == "cuda"
        self.rows = max(1, staging_bytes // sum(cache.spec(site).row_bytes for site in stored_sites(sites)))
        # a segment is never split, so a buffer must hold the largest, which is at most a shard
        self.rows = max(self.rows, cache.layout.shard_rows)
        self._stream = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._buffers = [self._make(cache, sites) for _ in range(2)]

    def _make(self, cache: Cache, sites: Sequence[str]) -> _Buffer:
        tensors = _empty(cache, sites, self.rows, torch.device("cpu"), pinned=self._cuda)
        return _Buffer(tensors, {name: _bytes_of(tensor) for name, tensor in tensors.items()})

    def pieces(self, segments: Sequence[Segment]) -> Iterator[tuple[list[Segment], _Buffer]]:
        """Cuts the segments, whose slots follow one another, into pieces that fit a buffer."""
        piece: list[Segment] = []
        turn = 0
        for segment in segments:
            if piece and segment.slot + segment.rows - piece[0].slot > self.rows:
                yield piece, self._free(turn)
                piece, turn = [], 1 - turn
            piece.append(segment)
        if piece:
            yield piece, self._free(turn)

    def _free(self, turn: int) -> _Buffer:
        buffer = self._buffers[turn]
        if buffer.copied is not None:
            buffer.copied.synchronize()
            buffer.copied = None
        return buffer

    def copy(self, buffer: _Buffer, pool: Pool, slot: int, rows: int) -> None:
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            for name, tensor in buffer.tensors.items():
                pool.arrays[name][slot : slot + rows].copy_(tensor[:rows], non_blocking=self._cuda)
            if self._stream is not None:
                buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                buffer.copied.record(self._stream)

    def finish(self) -> None:
        """Everything copied so far is in the pool, for every stream."""
        if self._stream is not None:
            self._stream.synchronize()


def take_rows(tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """``tensor[rows]`` for a tensor on the CPU, on the calling thread alone."""
    bits = tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])
    return from_bits(np.take(bits.numpy(), rows, axis=0), tensor.dtype)


def from_bits(bits: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """Integers of a dtype's size as that dtype."""
    return torch.from_numpy(bits).view(dtype)


def _empty(
    cache: Cache, sites: Sequence[str], rows: int, device: torch.device, pinned: bool = False
) -> dict[str, Tensor]:
    """Array → [rows, …] for all arrays of the sites, in the dtype that holds what is stored."""
    found = {}
    for spec in (cache.spec(site) for site in stored_sites(sites)):
        for name in spec.arrays:
            inner = cache.layout.arrays[name].shape[1:]
            dtype = stored_dtype(name, spec)
            found[name] = torch.empty((rows, *inner), dtype=dtype, device=device, pin_memory=pinned)
    return found


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    view: NDArray[Any] = tensor.view(torch.uint8).reshape(-1).numpy()
    return view
