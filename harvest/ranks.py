"""A harvest by several processes: what one says about the others, and when all have ended."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..shared.cache.commits import commits_of
from ..shared.cache.growth import Parts
from ..shared.cache.mirror import shown
from ..shared.console import Console, Progress
from ..shared.errors import UsageError
from ..shared.ranks import Rank
from .config import HarvestConfig

if TYPE_CHECKING:
    from ..shared.cache import CacheWriter

_POLL_SECONDS = 0.5
_POLL_BUCKET_SECONDS = 5.0


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


def shards_committed(path: Path, parts: Parts) -> int:
    """Shards that are complete, whoever wrote them."""
    return len(parts.committed(commits_of(path)))


def kept(path: Path, parts: Parts) -> str:
    """What an interrupted harvest leaves, in words."""
    return f"{shards_committed(path, parts)} of {parts.layout.n_shards} shards are in {shown(path)}"


def wait_for_others(writer: CacheWriter, n_seq: int | None) -> None:
    """Returns when every shard is written and no other process works on the cache."""
    while writer.ranks_left(n_seq):
        time.sleep(_POLL_SECONDS if writer.mirror is None else _POLL_BUCKET_SECONDS)


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
