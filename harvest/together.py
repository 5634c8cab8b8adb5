"""`pipeline harvest --ranks N`: N processes on this machine, their progress in one line, and their results as one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..shared.cache.format import MANIFEST
from ..shared.cache.growth import Parts, read_head, read_plans, standing_of
from ..shared.console import Console, Progress
from ..shared.errors import DataError
from ..shared.processes import run_together
from ..shared.ranks import Rank
from .ranks import kept, path_in, rows_committed
from .run import HarvestResult
from .stages import STAGES


def harvest_together(arguments: Sequence[str], count: int, console: Console) -> HarvestResult:
    """Harvests with ``count`` processes. One that dies costs the shards that it had not finished; the others go on.

    Args:
        arguments: of `pipeline harvest`, its settings alone.

    Raises: as run_together.
    """
    started = time.perf_counter()
    with _Whole(console, count) as whole:
        documents = run_together(["harvest", *arguments], count, console, whole)
    return _summed(documents, time.perf_counter() - started)


def _summed(documents: Sequence[Mapping[str, Any]], seconds: float) -> HarvestResult:
    """The result of the process that finished the cache, with what all of them did."""
    finished = next((one for one in documents if one["complete"]), None)
    if finished is None:
        raise DataError(
            f"every process ended, and {documents[0]['path']} is not finished", "the same command again finishes it"
        )
    own = {field.name: finished[field.name] for field in fields(HarvestResult)}
    for name in ("shards_written", "tokens_run", "tokens_per_second"):
        own[name] = sum(one[name] for one in documents)
    stages = {stage: sum(one["stages"][stage] for one in documents) / len(documents) for stage in STAGES}
    return HarvestResult(**{**own, "path": Path(own["path"]), "seconds": seconds, "stages": stages})


class _Whole:
    """The progress of all processes, read off the commits in the folder."""

    def __init__(self, console: Console, count: int) -> None:
        self._console, self._count = console, count
        self._stack = ExitStack()
        self._progress: Progress | None = None
        self._path: Path | None = None
        self._parts: Parts | None = None
        self._seen = 0

    def hear(self, rank: Rank, line: str) -> None:
        """Every process says where the cache is; nothing is counted before."""
        self._path = self._path or path_in(line)

    def look(self) -> None:
        """Counts the rows that were committed since."""
        if self._path is None:
            return
        if self._parts is None or self._progress is None:
            head = self._path / MANIFEST
            manifest = read_head(head) if head.exists() else None
            self._parts = standing_of(self._path, read_plans(self._path), manifest).parts
            self._seen = rows_committed(self._path, self._parts)
            total, label = self._parts.layout.n_rows, f"harvest, {self._count} processes"
            self._progress = self._stack.enter_context(self._console.progress(total, "rows", label, done=self._seen))
        rows = rows_committed(self._path, self._parts)
        self._progress.advance(rows - self._seen)
        self._seen = rows

    def kept(self) -> str:
        """The shards that are committed."""
        if self._path is None or self._parts is None:
            return "no shard was written"
        return kept(self._path, self._parts)

    def __enter__(self) -> _Whole:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
