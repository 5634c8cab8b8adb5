"""Sequences through the model, activations into host buffers: on a GPU the copies run beside the computation."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .capture import SiteReader
from .data.pack import Block
from .job import Job
from .stages import Stages


class Forward:
    """Runs units of sequences through a model, a batch at a time.

    Args:
        job: settles the sizes, the device, and what the model must be told besides the tokens.
        reader: eager or compiled; entered.
        stages: where the time is counted.
    """

    def __init__(self, job: Job, reader: SiteReader, stages: Stages) -> None:
        self._job, self._reader, self._stages = job, reader, stages
        self._device = job.checkpoint.device
        self._cuda = self._device.type == "cuda"
        self._side: Any = torch.cuda.Stream(self._device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._copying = 0.0
        self._last: tuple[Any, Any] | None = None

    def warm_up(self) -> None:
        """One batch that nobody keeps: compiles a model that is compiled, and fills the caches of the rest."""
        ids = np.full((self._job.batch_seqs, self._job.config.ctx), self._job.specials.bos, np.int32)
        zeros = np.zeros_like(ids)
        block = Block(ids, zeros.astype(np.uint32), zeros.astype(np.uint16), zeros.astype(np.uint8))
        self._run(block, lambda _name, _value: None)
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def compute(self, block: Block, buffer: dict[str, Tensor]) -> Any:
        """Runs the model on every batch of a unit; the activations arrive in the buffer.

        Returns:
            On CUDA an event after which they have arrived; None where they already have.
        """
        with self._stages.of("forward"):
            row = 0
            self._copying = 0.0
            for start in range(0, len(block), self._job.batch_seqs):
                batch = block[start : start + self._job.batch_seqs]
                rows = slice(row, row + batch.tokens.size)
                self._run(batch, lambda name, value, rows=rows: self._keep(buffer[name][rows], value))
                row = rows.stop
            done = torch.cuda.current_stream(self._device).record_event() if self._cuda else None
        self._stages.move(self._copying, "forward", "copy")
        return self._queue(done) if self._cuda else None

    def _run(self, batch: Block, sink: Any) -> None:
        """One call of the model. A compiled one gets whole batches only: another shape would be another graph."""
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
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._cuda else tensor

    def _keep(self, target: Tensor, value: Tensor) -> None:
        """Copies [batch, ctx, d] into rows of a host buffer, rounding to what is stored."""
        flat = value.reshape(-1, value.shape[-1])
        if not self._cuda:
            started = time.perf_counter()
            target.copy_(flat)
            self._copying += time.perf_counter() - started
            return
        # A copy of its own: the model may go on to change the original, and half the bytes cross the bus.
        staged = flat.to(target.dtype, copy=True)
        ready = torch.cuda.current_stream(self._device).record_event()
        with torch.cuda.stream(self._side):
            self._side.wait_event(ready)
            target.copy_(staged, non_blocking=True)
            staged.record_stream(self._side)

    def _queue(self, done: Any) -> Any:
        """Lets the device run one unit ahead of the loop, no more; the wait for the unit before tells what is slow."""
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
