"""Checkpoints beside training: copied at their step, hashed and written while the run trains on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...shared.console import Console
from ...shared.errors import PipelineError
from ...shared.runs.folder import Run
from ...shared.runs.records import FileRecords
from ..step.trainee import Trainee
from .checkpoint import Captured, capture


class Snapshot:
    """Copies of a run's tensors in host memory, which every checkpoint of the run uses again.

    From a CUDA device the copies are queued behind the work of the step, into pinned memory: the host goes on at once,
    and `wait`, called by the thread that writes, returns when they are complete.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy tensors; only their memory is kept from one call to the next. Ends the life of the copies before."""
        before, self._memory = self._memory, {}
        for name, value in tensors.items():
            held = before.get(name)
            if held is None or held.shape != value.shape or held.dtype != value.dtype:
                pin = value.device.type == "cuda"
                held = torch.empty(value.shape, dtype=value.dtype, pin_memory=pin)
            self._memory[name] = held.copy_(value.detach(), non_blocking=True)
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(self._device))
        return dict(self._memory)

    def wait(self) -> None:
        """Return when the copies are complete."""
        if self._copied is not None:
            self._copied.synchronize()


class Saving:
    """Writes the checkpoints of one run on another thread, one at a time.

    Args:
        thread: what writes; the runs of a group share it, so that saving takes at most one core from training.
    """

    def __init__(self, run: Run, thread: ThreadPoolExecutor, device: torch.device) -> None:
        self._run, self._thread = run, thread
        self._files = FileRecords(run.path)
        self._snapshot = Snapshot(device)
        self._job: Future[Path] | None = None

    def save(self, trainee: Trainee, position: Mapping[str, Any]) -> None:
        """Copy the state of a run at its current step, and begin to write it; waits for the checkpoint before.

        Raises:
            PipelineError: a gradient of the fused step was not finite, or the checkpoint before could not be written.
        """
        self.wait()
        captured = capture(trainee, position)
        files = self._files.now()
        both = {f"coder.{name}": value for name, value in captured.coder.items()}
        both |= {f"optimizer.{name}": value for name, value in captured.optimizer.items()}
        copies = self._snapshot.take(both)
        self._job = self._thread.submit(self._write, captured, copies, files, trainee.config.keep_checkpoints)

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._job is not None and not self._job.done()

    def check(self) -> None:
        """Raises what went wrong with a checkpoint that is no longer being written."""
        if not self.writing:
            self.wait()

    def wait(self) -> None:
        """Return when the last checkpoint is on disk. Raises what went wrong with it, once."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def _write(self, captured: Captured, copies: Mapping[str, Tensor], files: Any, keep: int | None) -> Path:
        self._snapshot.wait()
        coder = {name: copies[f"coder.{name}"] for name in captured.coder}
        optimizer = {name: copies[f"optimizer.{name}"] for name in captured.optimizer}
        return self._run.save_checkpoint(captured.step, coder, optimizer, captured.state, keep, files)


@contextmanager
def writing() -> Iterator[ThreadPoolExecutor]:
    """The thread that checkpoints are written on; ends with the last of them."""
    with ThreadPoolExecutor(1, thread_name_prefix="checkpoints") as thread:
        yield thread


@contextmanager
def all_written(savings: Sequence[Saving], console: Console) -> Iterator[None]:
    """However training ends, wait for the checkpoints that are being written.

    Raises:
        PipelineError: one could not be written. Where another error ends the training, the console shows this one.
    """
    try:
        yield
    except BaseException:
        for saving in savings:
            try:
                saving.wait()
            except (PipelineError, OSError) as error:
                console.warn(f"a checkpoint was not written: {error}")
        raise
    for saving in savings:
        saving.wait()
