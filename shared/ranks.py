"""Which of several processes of one command this is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .console import count
from .errors import UsageError

T = TypeVar("T")

MEETING = "PIPELINE_MEETING"
"""Environment variable: the file in which processes meet that cannot work without each other."""

ARRAY = "array"
"""Of ``--ranks``: one process for each task of a SLURM job array."""


@dataclass(frozen=True)
class Rank:
    """One process of several that do one command's work.

    Attributes:
        index, count: its number from 0 on, and how many there are.
        speaks: it says what it does; of processes that were started together only the first does.
        waits: it reports on all of them, and ends when the cache is finished.
    """

    index: int = 0
    count: int = 1
    speaks: bool = True
    waits: bool = False

    def __str__(self) -> str:
        return f"{self.index} of {self.count}"

    def part(self, items: Sequence[T]) -> list[T]:
        """Its share of some work: every ``count``-th item."""
        return list(items[self.index :: self.count])


def rank_of(ranks: str | None, rank: int | None, environment: Mapping[str, str]) -> Rank | None:
    """The process that the options or the environment describe; None: this one starts ``int(ranks)`` others.

    Args:
        ranks: of ``--ranks``: a number, or ``array``, which reads SLURM's variables.
        rank: of ``--rank``.
        environment: torchrun's RANK and WORLD_SIZE count without an option; SLURM's variables do not, because a job
            array may just as well harvest a cache in each task.

    Raises:
        UsageError: the options contradict each other or the environment.
    """
    started = int(environment.get("WORLD_SIZE", "1"))
    if ranks is None:
        if rank is not None:
            raise UsageError(f"--rank {rank} needs the number of processes", f"--rank {rank} --ranks N")
        if started < 2:
            return Rank()
        index = int(environment["RANK"])
        # torchrun ends the others where one has failed, so waiting for them has an end
        return Rank(index, started, speaks=index == 0, waits=index == 0 and "TORCHELASTIC_RUN_ID" in environment)
    if started > 1:
        raise UsageError(f"--ranks {ranks} under torchrun, which started {started} processes", "leave --ranks out")
    if ranks == ARRAY:
        return _array_task(rank, environment)
    if not ranks.isdigit() or int(ranks) < 1:
        raise UsageError(f"--ranks {ranks!r}: expected a number of processes, or {ARRAY}", "--ranks 2")
    if rank is None:
        return Rank() if int(ranks) == 1 else None
    if not 0 <= rank < int(ranks):
        raise UsageError(f"--rank {rank}: expected 0 to {int(ranks) - 1} for --ranks {ranks}")
    return Rank(rank, int(ranks))


def restarted(environment: Mapping[str, str]) -> bool:
    """Whether torchrun has started its processes again, after one of them had died."""
    return int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def processes(this: Rank | None, ranks: str | None) -> int:
    """How many processes there are in all; `this` is :func:`rank_of` these ``ranks``."""
    return int(ranks or 1) if this is None else this.count


def _array_task(rank: int | None, environment: Mapping[str, str]) -> Rank:
    if rank is not None:
        raise UsageError(f"--ranks {ARRAY} takes the rank from SLURM, found --rank {rank}", "leave --rank out")
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    if missing := [name for name in names if name not in environment]:
        raise UsageError(f"--ranks {ARRAY}: {', '.join(missing)} not found: this is no task of a job array", "sbatch")
    task, first, last, tasks = (int(environment[name]) for name in names)
    step = (last - first) // (tasks - 1) if tasks > 1 else 1
    if first + step * (tasks - 1) != last or (task - first) % step:
        raise UsageError(f"--ranks {ARRAY}: the tasks from {first} to {last} are not evenly spaced", "--array=0-7")
    return Rank((task - first) // step, tasks)


def local_device(device: str, environment: Mapping[str, str]) -> str:
    """The device of a process: where several run on one machine (LOCAL_RANK), each of them gets one of its GPUs."""
    local = environment.get("LOCAL_RANK")
    if local is None or device not in ("auto", "cuda"):
        return device
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(local) % devices}" if devices else device


def refuse_idle(n: int, n_runs: int, other: str = "") -> None:
    """Raises UsageError where there are more processes than runs, each of which one process trains.

    Args:
        other: what else the hint suggests.
    """
    if n > n_runs:
        fewer = "one process" if n_runs == 1 else f"at most {n_runs} processes, or more variants, seeds or layers"
        raise UsageError(f"{n} processes for {count(n_runs, 'run')}: a run is trained by one process", fewer + other)
