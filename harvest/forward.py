"""Runs sequences through the model and copies activations into host buffers; on a GPU both happen at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.capture import SiteReader
from ..shared.cache import SiteSpec
from ..shared.device import to_device
from .data.pack import Block
from .job import Job
from .measure import UnitStats
from .stages import Stages


@dataclass(frozen=True)
class Computed:
    """What a unit's forward pass leaves beside the activations.

    Attributes:
        arrived: a CUDA event that follows the copies to the host; None if they are complete already.
        stats: the statistics of each shard, once the copies have arrived; None: the writers measure the rows.
    """

    arrived: Any = None
    stats: UnitStats | None = None


class Forward:
    """Runs units of sequences through a model, a batch at a time.

    Args:
        job: sizes, device, and whether the model needs a mask or positions.
        reader: eager or compiled; entered already.
        stages: counts the time.
        measured: sites whose statistics are summed on the device while their rows are there.
    """

    def __init__(self, job: Job, reader: SiteReader, stages: Stages, measured: Sequence[SiteSpec] = ()) -> None:
        self._measured = measured
        self._job, self._reader, self._stages = job, reader, stages
        self._device = job.checkpoint.device
        self._cuda = self._device.type == "cuda"
        self._side: Any = torch.cuda.Stream(self._device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._copying = 0.0
        self._last: tuple[Any, Any] | None = None

    def warm_up(self) -> None:
        """Runs one batch and drops the result: compiles the model if it is to be compiled, and warms up the device."""
        ids = np.full((self._job.batch_seqs, self._job.config.ctx), self._job.specials.filler, np.int32)
        zeros = np.zeros_like(ids)
        block = Block(ids, zeros.astype(np.uint32), zeros.astype(np.uint16), zeros.astype(np.uint8))
        self._run(block, lambda _name, _value: None)
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def compute(self, block: Block, buffer: dict[str, Tensor]) -> Computed:
        """Runs the model on every batch of a unit and copies the activations into the buffer."""
        stats = UnitStats(block, self._measured, self._job.seqs_per_shard, self._device) if self._measured else None

        def keep(name: str, rows: slice, value: Tensor) -> None:
            staged = self._keep(buffer[name][rows], value)
            if stats is not None:
                stats.add(name, rows.start, staged)

        with self._stages.of("forward"):
            row = 0
            self._copying = 0.0
            for start in range(0, len(block), self._job.batch_seqs):
                batch = block[start : start + self._job.batch_seqs]
                rows = slice(row, row + batch.tokens.size)
                self._run(batch, lambda name, value, rows=rows: keep(name, rows, value))
                row = rows.stop
            if stats is not None:
                stats.send()
            done = torch.cuda.current_stream(self._device).record_event() if self._cuda else None
        self._stages.move(self._copying, "forward", "copy")
        return Computed(self._queue(done) if self._cuda else None, stats)

    def _run(self, batch: Block, sink: Any) -> None:
        """One call of the model. A compiled model gets whole batches only: another shape would be another graph."""
        job, n = self._job, len(batch)
        missing = job.batch_seqs - n if job.compiled else 0
        ids = self._to_device(batch.tokens.astype(np.int64), missing, job.specials.pad)
        mask = positions = None
        if job.isolated:
            positions = self._to_device(batch.positions(), missing, 0)
        elif job.masked and (job.compiled or batch.has_padding):
            mask = self._to_device((~batch.padding).astype(np.int64), missing, 1)
        self._reader.read(ids, mask, lambda name, value: sink(name, value[:n]), positions)

    def _to_device(self, values: np.ndarray[Any, Any], missing: int, filler: int) -> Tensor:
        if missing:
            values = np.pad(values, ((0, missing), (0, 0)), constant_values=filler)
        return to_device(torch.from_numpy(values), self._device)

    def _keep(self, target: Tensor, value: Tensor) -> Tensor:
        """Copies [batch, ctx, d] into rows of a host buffer, rounding to its dtype. Returns them rounded, [n, d]."""
        flat = value.reshape(-1, value.shape[-1])
        if self._cuda:
            flat = flat.to(self._device)  # a spread model has sites on other devices
        if not self._cuda:
            started = time.perf_counter()
            target.copy_(flat)
            self._copying += time.perf_counter() - started
            return target
        # Copied on the device first: the model may change the original in place, and after rounding to the stored dtype
        # fewer bytes cross the bus. The side stream waits for that copy only, so the transfer runs beside the model;
        # record_stream keeps the allocator from reusing `staged` before the transfer has read it.
        staged = flat.to(target.dtype, copy=True)
        ready = torch.cuda.current_stream(self._device).record_event()
        with torch.cuda.stream(self._side):
            self._side.wait_event(ready)
            target.copy_(staged, non_blocking=True)
            staged.record_stream(self._side)
        return staged

    def _queue(self, done: Any) -> Any:
        """Lets the device run one unit ahead of the loop: waits for the unit before, counting what it waits for."""
        self._side.wait_event(done)  # the statistics are copied on the stream of the model
        arrived = self._side.record_event()
        if self._last is not None:
            with self._stages.of("forward"):
                self._last[0].synchronize()
            with self._stages.of("copy"):
                self._last[1].synchronize()
        self._last = (done, arrived)
        return arrived

    def finish(self) -> None:
        """Waits for the last unit."""
        if self._last is not None:
            with self._stages.of("forward"):
                self._last[0].synchronize()
            with self._stages.of("copy"):
                self._last[1].synchronize()
