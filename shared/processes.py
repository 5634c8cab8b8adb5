"""One command by several processes of this machine: started, watched, stopped together, and their results collected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from .console import Console
from .errors import DataError, PipelineError, UsageError
from .ranks import Rank

_POLL_SECONDS = 0.2
_LAST_WORDS = 5
_ERRORS = {error.exit_code: error for error in (PipelineError, UsageError, DataError)}


class Watch(Protocol):
    """What follows the processes."""

    def hear(self, rank: Rank, line: str) -> None:
        """A line of a process's stderr, warnings excepted; called from a thread of its own for each process."""

    def look(self) -> None:
        """Called several times a second while a process runs, and once more at the end."""

    def kept(self) -> str:
        """What is on disk, in words."""


def run_together(words: Sequence[str], count: int, console: Console, watch: Watch) -> list[dict[str, Any]]:
    """Runs ``pipeline WORDS --rank I --ranks N --json`` for every I, and returns their documents in that order.

    Each process is given a GPU by its number if there are several (LOCAL_RANK). A process that dies does not end the
    others.

    Raises:
        PipelineError, UsageError, DataError: what the first of the processes that failed said, when all have ended.
        KeyboardInterrupt: this process was interrupted, and has passed it on.
    """
    warned: set[str] = set()
    children = [_Child(Rank(index, count), words, console, watch, warned) for index in range(count)]
    try:
        while any(child.running() for child in children):
            watch.look()
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        for child in children:
            child.stop()
        for child in children:
            child.end()
        raise KeyboardInterrupt(watch.kept()) from None
    for child in children:
        child.end()
    watch.look()
    for child in children:
        child.raise_failure()
    return [child.document() for child in children]


class _Child:
    """One of the processes. Its warnings are shown once, whichever process gives them."""

    def __init__(self, rank: Rank, words: Sequence[str], console: Console, watch: Watch, warned: set[str]) -> None:
        self._rank, self._console, self._watch, self._warned = rank, console, watch, warned
        package = __package__.split(".", maxsplit=1)[0]
        ranks = ["--rank", str(rank.index), "--ranks", str(rank.count)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", package, *words, *ranks, "--json"],
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
            self._last.append(line)
            if not line.startswith("warning: "):
                self._watch.hear(self._rank, line)
            elif line not in self._warned:
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

    def raise_failure(self) -> None:
        """Raises the error that the process ended with, if it did."""
        code = self._process.returncode
        if code == 0:
            return
        if code in _ERRORS and self._out[0].strip():
            error = self.document()["error"]
            raise _ERRORS[code](error["message"], error["hint"])
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        words = "".join(f"\n  {line}" for line in self._last)
        raise PipelineError(
            f"process {self._rank} ended {how}; {self._watch.kept()}{words}",
            "the same command does what is missing, with any --ranks (training with --resume)",
        )


def _environment(rank: Rank) -> dict[str, str]:
    """The processes share the cores, unless the user says how many threads one takes."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // rank.count))
    return {"OMP_NUM_THREADS": threads, **os.environ, "LOCAL_RANK": str(rank.index)}
