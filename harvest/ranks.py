"""A harvest by several processes: which one this is, what it says about the others, and when all have ended."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..shared.cache.commits import commits_of
from ..shared.cache.growth import Parts
from ..shared.console import Console, Progress
from ..shared.errors import UsageError
from .config import HarvestConfig

if TYPE_CHECKING:
    from ..shared.cache import CacheWriter

_POLL_SECONDS = 0.5

ARRAY = "array"
"""Of ``--ranks``: one process for each task of a SLURM job array."""


@dataclass(frozen=True)
class Rank:
    """One process of several that write one cache.

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


def placed(config: HarvestConfig, environment: Mapping[str, str]) -> HarvestConfig:
    """The config with one of the machine's GPUs for each of its processes, by LOCAL_RANK."""
    local = environment.get("LOCAL_RANK")
    if local is None or config.device not in ("auto", "cuda"):
        return config
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return replace(config, device=f"cuda:{int(local) % devices}") if devices else config


def refuse_unsettled(config: HarvestConfig) -> None:
    """Raises UsageError where processes could choose batches of different sizes."""
    if config.batch_tokens is None:
        raise UsageError(
            "harvest.batch_tokens: null takes what fits, which several processes may judge differently",
            "--set harvest.batch_tokens=8192",
        )


def begins(rank: Rank, missing: Sequence[int], writer: CacheWriter) -> str:
    """What one process says when it begins; :func:`path_in` reads it."""
    return f"process {rank} writes {len(missing)} of {writer.layout.n_shards} shards of {writer.path}"


def path_in(line: str) -> Path | None:
    """The cache, if the line is one of :func:`begins`."""
    found = re.fullmatch(r"process \d+ of \d+ writes \d+ of \d+ shards of (.+)", line)
    return None if found is None else Path(found[1])


def rows_committed(path: Path, parts: Parts) -> int:
    """Rows of the shards that are complete."""
    return sum(len(parts.layout.rows_of(shard)) for shard in parts.committed(commits_of(path)))


def shards_committed(writer: CacheWriter) -> int:
    """Shards that are complete, whoever wrote them."""
    return len(writer.parts.committed(commits_of(writer.path)))


def wait_for_others(writer: CacheWriter, n_seq: int | None) -> None:
    """Returns when every shard is written and no other process works on the cache."""
    while writer.ranks_left(n_seq):
        time.sleep(_POLL_SECONDS)


@contextmanager
def progress_of(rank: Rank, writer: CacheWriter, console: Console) -> Iterator[Progress]:
    """Rows of the whole cache, of all processes if this one reports on all; of its own shards if it is one of many."""
    layout = writer.layout
    owned = range(layout.n_shards) if rank.waits else [n for n in range(layout.n_shards) if writer.owns(n)]
    total = sum(len(layout.rows_of(shard)) for shard in owned)
    if rank.waits:
        before = rows_committed(writer.path, writer.parts)
        with (
            console.progress(total, "rows", "harvest", done=before) as progress,
            _Polled(writer, progress, before) as all_,
        ):
            yield all_
        return
    missing = sum(len(layout.rows_of(shard)) for shard in writer.missing_shards())
    with console.progress(total, "rows", "harvest", done=total - missing) as progress:
        yield progress


class _Polled:
    """Counts rows by the commits in the folder, in its own thread; what this process counts itself is dropped."""

    def __init__(self, writer: CacheWriter, progress: Progress, before: int) -> None:
        self._writer, self._progress, self._seen = writer, progress, before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def advance(self, n: float = 1, row: str | None = None, **fields: object) -> None:
        """A shard of this process: its commit is counted when the folder is looked at."""

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        rows = rows_committed(self._writer.path, self._writer.parts)
        self._progress.advance(rows - self._seen)
        self._seen = rows

    def __enter__(self) -> _Polled:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
