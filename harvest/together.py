"""`pipeline harvest --ranks N`: starts N processes on this machine, shows their progress in one line, sums them up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..shared.cache.commits import commits_of
from ..shared.cache.format import MANIFEST
from ..shared.cache.growth import Parts, read_head, read_plans, standing_of
from ..shared.console import Console, Progress
from ..shared.errors import DataError, PipelineError, UsageError
from .ranks import Rank, path_in, rows_committed
from .run import HarvestResult
from .stages import STAGES

_POLL_SECONDS = 0.2
_LAST_WORDS = 5
_ERRORS = {error.exit_code: error for error in (PipelineError, UsageError, DataError)}


def harvest_together(arguments: Sequence[str], count: int, console: Console) -> HarvestResult:
    """Harvests with ``count`` processes, each of which is given a GPU by its number if there are several.

    A process that dies costs the shards that it had not finished; the others go on.

    Args:
        arguments: of `pipeline harvest`, its settings alone.

    Raises:
        PipelineError, UsageError, DataError: what the first of the processes that failed said, when all have ended.
        KeyboardInterrupt: this process was interrupted, and has passed it on.
    """
    started = time.perf_counter()
    warned: set[str] = set()
    children = [_Child(Rank(index, count), arguments, console, warned) for index in range(count)]
    try:
        with _Whole(console) as whole:
            while any(child.running() for child in children):
                whole.look(children)
                time.sleep(_POLL_SECONDS)
            whole.look(children)
    except KeyboardInterrupt:
        for child in children:
            child.stop()
        for child in children:
            child.end()
        raise KeyboardInterrupt(whole.kept()) from None
    for child in children:
        child.end()
    for child in children:
        child.raise_failure(whole.kept())
    return _summed([child.document() for child in children], time.perf_counter() - started)


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


class _Child:
    """One of the processes. Its warnings are shown once, whichever process gives them."""

    def __init__(self, rank: Rank, arguments: Sequence[str], console: Console, warned: set[str]) -> None:
        self._rank, self._console, self._warned = rank, console, warned
        self.path: Path | None = None
        package = __package__.split(".", maxsplit=1)[0]
        ranks = ["--rank", str(rank.index), "--ranks", str(rank.count)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", package, "harvest", *arguments, *ranks, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(rank),
            start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
        )
        self._out: list[str] = []
        self._last: deque[str] = deque(maxlen=_LAST_WORDS)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._listen)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._out.append(self._process.stdout.read())

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in map(str.rstrip, self._process.stderr):
            self.path = self.path or path_in(line)
            self._last.append(line)
            if line.startswith("warning: ") and line not in self._warned:
                self._warned.add(line)
                self._console.warn(line.removeprefix("warning: "))

    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        if self.running():
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Waits for the process and for its last words."""
        self._process.wait()
        for thread in self._threads:
            thread.join()

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._out[0])
        return found

    def raise_failure(self, kept: str) -> None:
        """Raises the error that the process ended with, if it did."""
        code = self._process.returncode
        if code == 0:
            return
        again = "the same command writes the missing shards, with any --ranks"
        if code in _ERRORS and self._out[0].strip():
            error = self.document()["error"]
            raise _ERRORS[code](error["message"], error["hint"])
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        words = "".join(f"\n  {line}" for line in self._last)
        raise PipelineError(f"process {self._rank} ended {how}; {kept}{words}", again)


def _environment(rank: Rank) -> dict[str, str]:
    """The processes share the cores, unless the user says how many threads one takes."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // rank.count))
    return {"OMP_NUM_THREADS": threads, **os.environ, "LOCAL_RANK": str(rank.index)}


class _Whole:
    """The progress of all processes, read off the commits in the folder."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stack = ExitStack()
        self._progress: Progress | None = None
        self._path: Path | None = None
        self._parts: Parts | None = None
        self._seen = 0

    def look(self, children: Sequence[_Child]) -> None:
        """Counts the rows that were committed since; nothing before a process has said where the cache is."""
        if self._path is None:
            self._path = next((child.path for child in children if child.path is not None), None)
            if self._path is None:
                return
            head = self._path / MANIFEST
            self._parts = standing_of(
                self._path, read_plans(self._path), read_head(head) if head.exists() else None
            ).parts
            self._seen = rows_committed(self._path, self._parts)
            total = self._parts.layout.n_rows
            self._progress = self._stack.enter_context(
                self._console.progress(total, "rows", f"harvest, {len(children)} processes", done=self._seen)
            )
        assert self._progress is not None
        assert self._parts is not None
        rows = rows_committed(self._path, self._parts)
        self._progress.advance(rows - self._seen)
        self._seen = rows

    def kept(self) -> str:
        """What is on disk."""
        if self._path is None or self._parts is None:
            return "no shard was written"
        done = len(self._parts.committed(commits_of(self._path)))
        return f"{done} of {self._parts.layout.n_shards} shards are in {self._path}"

    def __enter__(self) -> _Whole:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
