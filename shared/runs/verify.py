"""Checks a run: reads every tensor, the metrics and the samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console import Console, Progress, count
from ..errors import DataError
from .folder import Run, open_run
from .samples import load_samples, samples_summary


@dataclass(frozen=True)
class RunReport:
    """Result of `verify_run`; `problems` holds one line for each damaged file."""

    path: Path
    complete: bool
    checkpoints: int
    tensors: int
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def hint(self) -> str | None:
        return (
            None
            if self.ok
            else f"delete the files and checkpoints named above, then pipeline train -c {self.path} --resume"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "ok": self.ok,
            "complete": self.complete,
            "checkpoints": self.checkpoints,
            "tensors": self.tensors,
            "problems": self.problems,
        }

    def __str__(self) -> str:
        state = "complete" if self.complete else "not finished"
        read = f"{count(self.checkpoints, 'checkpoint')}, {count(self.tensors, 'tensor')} read"
        head = f"{self.path}: {read}, {state}"
        return "\n".join([head, *self.problems, "ok" if self.ok else count(len(self.problems), "problem")])


def verify_run(path: Path, console: Console | None = None) -> RunReport:
    """Read every tensor: checkpoints are checked against their sha256, the finished coder against its settings.

    Raises:
        DataError: the folder is not a run.
    """
    run = open_run(path, allow_incomplete=True)
    problems: list[str] = []
    folders = run.checkpoints()
    with (console or Console(quiet=True)).progress(len(folders) + run.complete, "files", "verify") as progress:
        tensors = _read_checkpoints(run, folders, problems, progress)
        if run.complete:
            tensors += _read_coder(run, problems, progress)
    readers: list[Callable[[], object]] = [run.metrics]
    if samples_summary(path) is not None:
        readers.append(lambda: load_samples(path))
    for read in readers:
        with _noted(problems):
            read()
    return RunReport(path, run.complete, len(folders), tensors, problems)


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Adds a DataError to `problems` instead of raising it: one damaged file must not hide the others."""
    try:
        yield
    except DataError as error:
        problems.append(str(error))


def _read_checkpoints(run: Run, folders: list[Path], problems: list[str], progress: Progress) -> int:
    """Number of tensors read from the checkpoints."""
    tensors = 0
    for folder in folders:
        with _noted(problems):
            checkpoint = run.load_checkpoint(folder)
            tensors += len(checkpoint.coder) + len(checkpoint.optimizer) if checkpoint else 0
        progress.advance()
    return tensors


def _read_coder(run: Run, problems: list[str], progress: Progress) -> int:
    """Number of tensors read from the finished coder; all must be finite."""
    tensors = 0
    with _noted(problems):
        state = run.load_coder().state_dict()
        tensors = len(state)
        wrong = [name for name, value in state.items() if not bool(value.isfinite().all())]
        problems += [f"{run.path / 'final'}: {name} holds an infinity or NaN" for name in wrong]
    progress.advance()
    return tensors
