"""Writing activations from host memory to disk while the model computes the next ones."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from ..shared.cache import CacheWriter, Layout
from ..shared.cache.commits import CommitRecord
from ..shared.console import Progress, size
from .data.pack import Block
from .data.reading import BadRowError
from .forward import Computed
from .job import Job
from .stages import Stages


class Disk:
    """Buffers in host memory and the threads that write them to disk.

    Back-pressure: there are `harvest.buffers` buffers, and each is either in the queue of free ones, being filled, or
    owned by one pending write. If the disk is slower than the model, :meth:`buffer` waits for a free one, so memory
    does not grow. Each shard of a unit is a task of its own; the last to end frees the buffer.

    Args:
        look: sees every shard that was committed.
    """

    def __init__(
        self,
        job: Job,
        shapes: Layout,
        writer: CacheWriter,
        progress: Progress,
        stages: Stages,
        look: Callable[[CommitRecord], None] = lambda _: None,
    ) -> None:
        self._look = look
        self._writer, self._progress, self._ctx, self._stages = writer, progress, shapes.ctx, stages
        self._cuda = job.checkpoint.device.type == "cuda"
        self._row_bytes = sum(site.row_bytes for site in shapes.sites)
        self._started = time.perf_counter()
        self._bytes = 0
        self._counting = threading.Lock()
        self._free: queue.SimpleQueue[dict[str, Tensor] | None] = queue.SimpleQueue()
        self._rows, self._sites = job.unit_shards * shapes.shard_rows, shapes.sites
        # A token for a buffer that is allocated when first needed: a small harvest needs few. Page-locking memory takes
        # time, so for a GPU those that will be needed are there before the first batch.
        needed = -(-len(writer.missing_shards()) // job.unit_shards) if self._cuda else 0
        for i in range(job.config.buffers):
            self._free.put(self.allocate() if i < needed else None)
        self._pool = ThreadPoolExecutor(job.config.writers, thread_name_prefix="write")
        self._pending: deque[Future[None]] = deque()
        self._handed_over = False

    def allocate(self) -> dict[str, Tensor]:
        """A new buffer: site → [rows of a unit, width], in page-locked memory for a GPU."""
        return {
            site.name: torch.empty(
                (self._rows, site.width), dtype=getattr(torch, site.logical_dtype), pin_memory=self._cuda
            )
            for site in self._sites
        }

    @contextmanager
    def buffer(self) -> Iterator[dict[str, Tensor]]:
        """A buffer to fill. Returns to the free ones at the end of the block, unless :meth:`write` took it over.

        Raises the error of an earlier write, if there was one.
        """
        with self._stages.of("write"):
            buffer = self._free.get()  # a failed write frees its buffer too, so this never waits forever
        self._raise_failures()
        if buffer is None:
            buffer = self.allocate()
        self._handed_over = False
        try:
            yield buffer
        finally:
            if not self._handed_over:
                self._free.put(buffer)

    def write(
        self, block: Block, shards: list[tuple[int, slice]], buffer: dict[str, Tensor], computed: Computed
    ) -> None:
        """Writes these shards of the unit in the background, once the copies into the buffer are complete.

        Args:
            shards: number of each shard, and its place in the block.
            computed: the event that follows the copies, and the statistics of the shards.
        """
        loan = _Loan(buffer, len(shards), self._free)
        self._handed_over = True
        for shard, cut in shards:
            self._pending.append(self._pool.submit(self._write, block[cut], shard, cut, loan, computed))

    def _write(self, part: Block, shard: int, cut: slice, loan: _Loan, computed: Computed) -> None:
        try:
            if computed.arrived is not None:
                computed.arrived.synchronize()
            first = cut.start * self._ctx
            record = self._writer.write_shard(
                shard,
                tokens=part.tokens,
                doc_id=part.doc_id,
                pos_in_doc=part.pos_in_doc,
                flags=part.flags,
                acts={name: values[first : first + part.tokens.size] for name, values in loan.buffer.items()},
                stats=None if computed.stats is None else computed.stats.of(first),
            )
            self._look(record)
            self._count(part.tokens.size)
        finally:
            loan.give_back()

    def _count(self, rows: int) -> None:
        with self._counting:
            self._bytes += rows * self._row_bytes
            rate = self._bytes / (time.perf_counter() - self._started)
            self._progress.advance(rows, disk=f"{size(rate)}/s", **self._stages.fields())

    def _raise_failures(self) -> None:
        ended = {one for one in self._pending if one.done()}
        self._pending = deque(one for one in self._pending if one not in ended)
        for one in ended:
            one.result()

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Computed shards are written even after Ctrl-C or a bad row; other errors cancel writes that have not begun.
        failed = kind is not None and not issubclass(kind, (KeyboardInterrupt, BadRowError))
        with self._stages.of("write"):
            self._pool.shutdown(wait=True, cancel_futures=failed)
        if kind is None:
            self.drain()

    def drain(self) -> None:
        """Waits for the writes in progress. Raises the error of one that failed."""
        with self._stages.of("write"):
            while self._pending:
                self._pending.popleft().result()


class _Loan:
    """A buffer that several writes share; the last one gives it back."""

    def __init__(
        self, buffer: dict[str, Tensor], writes: int, free: queue.SimpleQueue[dict[str, Tensor] | None]
    ) -> None:
        self.buffer, self._left, self._free = buffer, writes, free
        self._guard = threading.Lock()

    def give_back(self) -> None:
        """One of the writes has ended, well or not."""
        with self._guard:
            self._left -= 1
            if not self._left:
                self._free.put(self.buffer)
