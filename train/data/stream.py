"""The stream of batches that training reads: block-shuffled, read ahead, resumable to the row.

Two threads: the caller takes batches from the current window; the loader fills pools with the windows that follow
(`BlockReader` splits each fill over threads of its own). They meet only in `_ahead`, a queue of futures in the order of
the windows.

Invariants:
- `_next` is the first row not handed out. `position()` gives it together with the number of batches handed out, and a
  stream begun there yields the batches that this one would yield next.
- The rows of a window depend on (seed, epoch, window, blocks per window) and, for a sampler that follows training, on
  its control when the window becomes current (`_control`): never on how far ahead is read, on threads, memory or
  residency. Such a sampler draws on the caller's thread at that moment; what is read ahead are the blocks.
- A pool belongs to one window at a time: `_free_pools` holds those that no window reads. `_release` returns a pool with
  a mark of the device's last read, which the reader awaits before it writes. A pool of all rows, in memory or mapped,
  is only read, so all windows share it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shared.cache import Cache, Flag, positions
from ...shared.cache.batch import Batch
from ...shared.cache.blocks import Blocks, Index, StreamPosition, WindowPlan, expand, make_blocks, segments, window_rows
from ...shared.cache.heldout import Split, split_rows
from ...shared.device import to_device
from ...shared.errors import DataError, UsageError
from ...shared.joint_names import stored_sites
from ...shared.memory import free_memory
from ..samplers.base import Sampler, Window
from .config import DataConfig
from .mapped import MappedRows
from .memory import Reading, choose_pool
from .reader import BlockReader, Pool, Segment

META_BYTES = 64
"""Kept for each row of a window beside its activations: its place in the pool, token, document, …, and room to sort."""


@dataclass(frozen=True)
class StreamPlan:
    """The arithmetic of a stream, known before anything is read.

    Attributes:
        total_steps: batches from the very beginning to the end.
        rows_per_epoch: rows that the sampler draws in the first epoch.
        train_rows, heldout_rows: rows of the split (padding in neither).
        n_documents, n_heldout: documents, and how many of them are held out.
        window_rows: rows drawn from at a time.
        n_windows: windows in an epoch.
        reading: where rows lie when batches are drawn from them.
        pool_bytes: memory of all pools together.
        row_bytes: of a row over all sites.
        nonfinite_rows: rows left out because they hold an infinity or a NaN.
    """

    total_steps: int
    rows_per_epoch: int
    train_rows: int
    heldout_rows: int
    n_documents: int
    n_heldout: int
    window_rows: int
    n_windows: int
    reading: Reading
    pool_bytes: int
    row_bytes: int
    nonfinite_rows: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Drawn:
    """One window in training order: where each row lies in the pool, and what is known about it."""

    at: tuple[int, int]
    pool: Pool | MappedRows
    slots: Tensor
    meta: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, start: int, stop: int) -> Batch:
        meta = {name: values[start:stop] for name, values in self.meta.items()}
        return Batch(acts=self.pool.gather(self.slots[start:stop]), **meta)


@dataclass(frozen=True)
class _Read:
    """One window whose blocks are in the pool and from which no row is drawn yet.

    `slots` is where each training row of its blocks lies in the pool, in the order of `seen`.
    """

    at: tuple[int, int]
    pool: Pool | MappedRows
    slots: Index
    seen: Window


class Stream:
    """An iterator of batches; open it with :func:`open_stream`, and close it (or use ``with``).

    Reading begins with the first batch. Each training row that the sampler draws comes once in every epoch.

    Attributes:
        waited_seconds: time spent so far in waiting for data, the first window included.
        split: which rows train and which are held out.

    Args:
        start: a `position()`, or None: from the beginning.
        reserved: bytes of the free memory that something else will take.
        staging_bytes: read through host buffers of this size even where the pools lie on the CPU; None: only for a
            device, with the default size.
        processes: that read the same on this machine: on a CPU they share its memory.
    """

    def __init__(
        self,
        cache: Cache,
        sites: Sequence[str],
        config: DataConfig,
        sampler: Sampler,
        start: Mapping[str, Any] | None,
        device: torch.device,
        reserved: int = 0,
        staging_bytes: int | None = None,
        processes: int = 1,
    ) -> None:
        self.cache, self.sites, self.config, self.sampler = cache, tuple(dict.fromkeys(sites)), config, sampler
        self.waited_seconds = 0.0
        self.split: Split = split_rows(cache, config.heldout)
        self._device, self._staging_bytes = device, staging_bytes
        layout = cache.layout
        self._train = self.split.train
        if sampler.config.massive == "exclude":
            self._train = self._train & ~cache.massive_rows(self.sites)
        if sampler.config.template == "exclude":
            self._train = self._train & ((cache.flags.reshape(-1) & np.uint8(Flag.TEMPLATE)) == 0)
        self._blocks: Blocks = make_blocks(layout.n_rows, layout.shard_rows, config.block_rows, self._train)
        self._row_bytes = sum(cache.spec(site).row_bytes for site in stored_sites(self.sites))
        free = max(free_memory(device, processes) - reserved, 0)
        wanted = self._row_bytes + META_BYTES
        size = choose_pool(config, self._blocks.n_rows, wanted, free, on_device=device.type != "cpu")
        # the system's cache of file pages is in the host's memory, wherever the pool lies
        host = free if device.type == "cpu" else free_memory(torch.device("cpu"))
        self._beyond_memory = not size.whole and self._blocks.n_rows * self._row_bytes > host
        self._reading = size.reading
        self._warm = np.zeros(len(self._blocks), np.bool_)  # mapped blocks that were read once by this process
        per_window = max(1, size.window_rows // config.block_rows)
        if start is not None:
            per_window = start["blocks_per_window"]  # the order depends on it, so today's free memory must not decide
        self._windows = WindowPlan(len(self._blocks), min(per_window, len(self._blocks)), config.seed)
        if start is not None and not 0 <= start["window"] < self._windows.n_windows:
            raise DataError(
                f"a data position of window {start['window']} does not fit {cache.path}: its epochs have "
                f"{self._windows.n_windows} windows",
                hint="resume with the cache and the data settings of the run",
            )
        self._next = (
            StreamPosition(start["epoch"], start["window"], start["offset"]) if start else StreamPosition(0, 0, 0)
        )
        self._controls: dict[tuple[int, int], float | None] = {}
        if start is not None and "sampler" in start:
            sampler.load_state(start["sampler"])
            self._controls = {self._next[:2]: start["control"]}
        self._handed_out = (start["step"] if start else 0, self._next)

        self._reader: BlockReader | None = None
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="window-loader")
        self._ahead: deque[Future[_Drawn | _Read]] = deque()
        self._to_load = (self._next.epoch, self._next.window)
        self._free_pools: deque[Pool | MappedRows] = deque()
        self._filled: Future[None]
        self._current: _Drawn | None = None

    # --- what is known without reading ------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> StreamPlan:
        """The arithmetic of this stream."""
        config = self.config
        pools = {"mapped": 0, "memory": 1, "pools": 1 + config.prefetch}[self._reading]
        rows_per_epoch = self._rows_in_epoch(0)
        if config.tokens is not None:
            total_rows = config.tokens if rows_per_epoch else 0
        else:
            total_rows = rows_per_epoch + sum(self._rows_in_epoch(epoch) for epoch in range(1, config.epochs))
        return StreamPlan(
            total_steps=total_rows // config.batch_size,
            rows_per_epoch=rows_per_epoch,
            train_rows=int(self.split.train.sum()),
            heldout_rows=int(self.split.heldout.sum()),
            n_documents=self.split.n_documents,
            n_heldout=self.split.n_heldout,
            window_rows=min(self._windows.blocks_per_window * config.block_rows, self._blocks.n_rows),
            n_windows=self._windows.n_windows,
            reading=self._reading,
            pool_bytes=pools * self._capacity * self._row_bytes,
            row_bytes=self._row_bytes,
            nonfinite_rows=int(((self.cache.flags & np.uint8(Flag.NONFINITE)) != 0).sum()),
        )

    @property
    def total_steps(self) -> int:
        """Batches from the very beginning to the end, wherever this stream started."""
        return self.plan.total_steps

    @property
    def _capacity(self) -> int:
        """Rows a pool has room for."""
        most = self._windows.blocks_per_window * self.config.block_rows
        return min(most, self._blocks.n_rows) if self._reading == "pools" else self._blocks.n_rows

    def _rows_in_epoch(self, epoch: int) -> int:
        windows = range(self._windows.n_windows)
        return sum(self.sampler.count(self._candidates(epoch, window)[0]) for window in windows)

    def _candidates(self, epoch: int, window: int) -> tuple[Window, Index]:
        """What the sampler sees of a window, and the place of each of these rows among all rows of its blocks."""
        rows = window_rows(self._blocks, self._windows.blocks(epoch, window))
        places = np.flatnonzero(self._train[rows])
        kept = rows[places]
        flags = self.cache.flags.reshape(-1)[kept]
        ctx, batch_size = self.cache.ctx, self.config.batch_size
        seen = Window(
            row=kept,
            position=positions(kept, flags, ctx),
            flags=flags,
            seed=self.config.seed,
            epoch=epoch,
            index=window,
            ctx=ctx,
            batch_size=batch_size,
        )
        return seen, places

    # --- iteration --------------------------------------------------------------------------------------------------

    def position(self) -> dict[str, Any]:
        """Where the batch after the last one handed out begins: ``open_stream(..., start=position)`` resumes there."""
        step, at = self._handed_out
        position = {"step": step, **at._asdict(), "blocks_per_window": self._windows.blocks_per_window}
        if self.sampler.config.follows_training:
            position |= {"sampler": self.sampler.state(), "control": self._controls.get(at[:2], self.sampler.control())}
        return position

    def _control(self, window: tuple[int, int]) -> float | None:
        """The number that decides the rows of a window: the sampler's control when the window becomes current.

        It is saved with the position, so a resumed run draws the rest of the window with the same one. The one before
        is kept too: an interrupt may find the position of a batch that ended in the window before.
        """
        if window not in self._controls:
            self._controls = dict([*self._controls.items()][-1:]) | {window: self.sampler.control()}
        return self._controls[window]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        step, _ = self._handed_out
        if step >= self.total_steps:
            raise StopIteration
        parts: list[Batch] = []
        need = self.config.batch_size
        while need:
            window = self._window((self.total_steps - step - 1) * self.config.batch_size + need)
            stop = min(self._next.offset + need, len(window))
            parts.append(window.take(self._next.offset, stop))
            need -= stop - self._next.offset
            self._next = self._next._replace(offset=stop)
        batch = parts[0] if len(parts) == 1 else _concatenate(parts)
        self._handed_out = (step + 1, self._next)  # one assignment: an interrupt finds the old position or the new one
        return batch

    def check(self) -> None:
        """Returns when every chunk file read so far is known to be as its commit says: before anything that depends on
        the rows is kept. Raises DataError."""
        if self._reader is not None and self._reader.comparisons is not None:
            self._reader.comparisons.wait()

    def close(self) -> None:
        """Stops the threads and lets go of the pools."""
        if self._reader is not None:
            self._reader.close()
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()
        for pool in self._free_pools:
            if isinstance(pool, MappedRows):
                pool.close()
        self._free_pools.clear()
        self._current = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _window(self, rows_left: int) -> _Drawn:
        """The window that holds the next row, waiting for it if it has not been read yet.

        A window from which the sampler draws no row is passed over; a whole epoch of them is refused.

        Args:
            rows_left: rows still to hand out until training ends, the next one included.
        """
        barren = 0
        while self._current is None or self._next.offset >= len(self._current):
            if self._current is not None:
                barren = 0 if len(self._current) else barren + 1
                if barren > self._windows.n_windows:
                    raise UsageError("the sampler drew no row from a whole epoch", hint="choose another sampler")
                self._release(self._current)
            self._schedule(1)
            began = time.perf_counter()
            found = self._ahead.popleft().result()
            drawn = self._draw(found, self._control(found.at)) if isinstance(found, _Read) else found
            self.waited_seconds += time.perf_counter() - began
            if self._reader is not None and self._reader.comparisons is not None:
                self._reader.comparisons.poll()
            if drawn.at != self._next[:2]:
                self._next = StreamPosition(*drawn.at, 0)
            self._current = drawn
            # read ahead, unless training ends within this window
            if rows_left > len(drawn) - self._next.offset:
                self._schedule(self.config.prefetch)
        return self._current

    def _release(self, window: _Drawn) -> None:
        window.pool.mark_used()
        if self._reading == "pools":
            self._free_pools.append(window.pool)
        self._current = None

    def _schedule(self, wanted: int) -> None:
        """Submits windows until `wanted` are being read, as far as there are free pools."""
        if self._reader is None:
            self._start()
        while len(self._ahead) < wanted and self._free_pools:
            pool = self._free_pools.popleft() if self._reading == "pools" else self._free_pools[0]
            self._ahead.append(self._loader.submit(self._load, *self._to_load, pool))
            self._to_load = self._windows.after(*self._to_load)

    def _start(self) -> None:
        self._reader = BlockReader(
            self.cache,
            self.sites,
            self._device,
            self.config.workers,
            beyond_memory=self._beyond_memory,
            staging_bytes=self._staging_bytes,
        )
        if self._reading == "mapped":
            self._free_pools.append(MappedRows(self.cache, self.sites))
            return
        for _ in range(1 + self.config.prefetch if self._reading == "pools" else 1):
            self._free_pools.append(Pool.allocate(self.cache, self.sites, self._capacity, self._device))
        if self._device.type == "cuda":
            # torch may give the pools memory of tensors just freed, which this CUDA stream may still be reading
            torch.cuda.current_stream(self._device).synchronize()
        if self._reading == "memory":
            self._filled = self._loader.submit(self._fill_resident, self._free_pools[0])

    # --- on the loader thread ---------------------------------------------------------------------------------------

    def _load(self, epoch: int, window: int, pool: Pool | MappedRows) -> _Drawn | _Read:
        """Reads a window, and lets a sampler that does not follow training draw from it while the blocks arrive.

        Of the rows of the window's blocks, `places` picks the training rows.
        """
        assert self._reader is not None
        chosen = self._windows.blocks(epoch, window)
        pending: list[Future[None]] = []
        if isinstance(pool, MappedRows):
            slots = window_rows(self._blocks, chosen)
            pending = self._reader.warm(self._segments(chosen[~self._warm[chosen]]))
            self._warm[chosen] = True
        elif self._reading == "memory":
            self._filled.result()  # raises what the reading raised
            slot_of_block = np.cumsum(self._blocks.length) - self._blocks.length
            slots = expand(slot_of_block[chosen], self._blocks.length[chosen])
        else:
            pending = self._fill(chosen, pool)
            slots = np.arange(int(self._blocks.length[chosen].sum()))
        seen, places = self._candidates(epoch, window)
        found = _Read((epoch, window), pool, slots[places], seen)
        ready = found if self.sampler.config.follows_training else self._draw(found, None)
        self._reader.wait(pending)
        return ready

    def _draw(self, found: _Read, control: float | None) -> _Drawn:
        """The window in the sampler's order: slots[order] are the pool's rows in training order."""
        seen = replace(found.seen, control=control)
        order = self.sampler.order(seen)
        return _Drawn(found.at, found.pool, self._to_device(found.slots[order]), self._describe(seen.row[order]))

    def _fill_resident(self, pool: Pool | MappedRows) -> None:
        assert self._reader is not None
        assert isinstance(pool, Pool)
        self._reader.wait(self._fill(np.arange(len(self._blocks)), pool))

    def _fill(self, chosen: Index, pool: Pool) -> list[Future[None]]:
        """Begins to read blocks into a pool, one after another from its first slot."""
        assert self._reader is not None
        return self._reader.submit(pool, self._segments(chosen))

    def _segments(self, chosen: Index) -> list[Segment]:
        """Blocks as the reader takes them, each with the slot behind the one before."""
        assert self._reader is not None
        shard_rows = self.cache.layout.shard_rows
        most = self._reader.segment_blocks(self.config.block_rows)
        start, length = segments(self._blocks.start[chosen], self._blocks.length[chosen], shard_rows, most)
        slot = np.cumsum(length) - length
        return [
            Segment(first // shard_rows, first % shard_rows, rows, at)
            for first, rows, at in zip(start.tolist(), length.tolist(), slot.tolist(), strict=True)
        ]

    def _describe(self, row: Index) -> dict[str, Tensor]:
        return {name: self._to_device(values) for name, values in describe_rows(self.cache, row).items()}

    def _to_device(self, values: NDArray[Any]) -> Tensor:
        return to_device(torch.from_numpy(values), self._device)


def open_stream(
    cache: Cache,
    sites: Sequence[str],
    config: DataConfig,
    sampler: Sampler,
    start: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    reserved: int = 0,
    processes: int = 1,
) -> Stream:
    """The batches of a training run, from the beginning or from a :meth:`Stream.position`.

    Args:
        cache: an open cache.
        sites: arrays that a batch carries; a name given twice is read once.
        config: order, batch size, memory.
        sampler: draws the rows of each window.
        start: a position of a stream over the same cache with the same settings.
        device: where the batches lie.
        reserved: bytes of the free memory that something else will take: the coders, where they do not exist yet.
        processes: that read the same on this machine: on a CPU they share its memory.

    Raises:
        UsageError: the cache has no such site, or no row to train on.
        DataError: the position does not fit this cache, or the cache is incomplete.
    """
    if not cache.complete:
        raise DataError(f"{cache.path} is incomplete", hint="run the same harvest again: it writes what is missing")
    return Stream(cache, sites, config, sampler, start, torch.device(device), reserved, processes=processes)


def describe_rows(cache: Cache, row: Index) -> dict[str, NDArray[Any]]:
    """Everything a batch says of its rows beside the activations, by the names of train.data.batch.Batch."""
    flags = cache.flags.reshape(-1)[row]
    return {
        "tokens": cache.tokens.reshape(-1)[row],
        "position": positions(row, flags, cache.ctx),
        "pos_in_doc": cache.pos_in_doc.reshape(-1)[row].astype(np.int32),
        "doc_id": cache.doc_id.reshape(-1)[row].astype(np.int64),
        "flags": flags,
        "row": row,
    }


_META = ("tokens", "position", "pos_in_doc", "doc_id", "flags", "row")


def _concatenate(parts: Sequence[Batch]) -> Batch:
    acts = {site: torch.cat([part.acts[site] for part in parts]) for site in parts[0].acts}
    return Batch(acts=acts, **{name: torch.cat([getattr(part, name) for part in parts]) for name in _META})
