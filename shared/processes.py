"""One command by several processes of this machine: started, watched, stopped together, and their results collected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .console import Console
from .errors import LOST, DataError, PipelineError, UsageError
from .ranks import MEETING, Rank

_POLL_SECONDS = 0.2
_LAST_WORDS = 5
_GRACE_SECONDS = 10.0
_ERRORS = {error.exit_code: error for error in (PipelineError, UsageError, DataError)}


class Watch(Protocol):
    """What follows the processes."""

    def hear(self, rank: Rank, line: str) -> None:
        """A line of a process's stderr, warnings excepted; called from a thread of its own for each process."""

    def look(self) -> None:
        """Called several times a second while a process runs, and once more at the end."""

    def kept(self) -> str:
        """What is on disk, in words."""


def run_together(
    words: Sequence[str], count: int, console: Console, watch: Watch, *, bound: bool = False
) -> list[dict[str, Any]]:
    """Runs ``pipeline WORDS --rank I --ranks N --json`` for every I, and returns their documents in that order.

    Each process is given a GPU by its number if there are several (LOCAL_RANK).

    Args:
        bound: none can go on without the others, so one that fails ends all; they meet in a file (MEETING). Otherwise
            a process that dies does not end the others.

    Raises:
        PipelineError, UsageError, DataError: what the first of the processes that failed said, when all have ended.
        KeyboardInterrupt: this process was interrupted, and has passed it on.
    """
    warned: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        extra = {MEETING: f"{folder}/meeting"} if bound else {}
        children = [_Child(Rank(index, count), words, console, watch, warned, extra) for index in range(count)]
        fallen = _Fallen(children)
        try:
            while any(child.running() for child in children):
                watch.look()
                if bound:
                    fallen.end_others()
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
    for child in fallen.first():
        child.raise_failure()
    return [child.document() for child in children]


class _Fallen:
    """The processes that failed, and what becomes of those that they were bound to."""

    def __init__(self, children: Sequence[_Child]) -> None:
        self._children = children
        self._since: float | None = None

    def end_others(self) -> None:
        """Stops the others some seconds after one has failed, and kills those that still run as long after: a process
        that waits in a collective operation hears nothing."""
        if not any(child.failed() for child in self._children):
            return
        self._since = self._since or time.monotonic()
        waited = time.monotonic() - self._since
        for child in self._children:
            if waited > 2 * _GRACE_SECONDS:
                child.stop(signal.SIGKILL)
            elif waited > _GRACE_SECONDS:
                child.stop()

    def first(self) -> list[_Child]:
        """All processes, those that fell by themselves before those that only lost contact with them."""
        return sorted(self._children, key=lambda child: child.lost_contact() or child.stopped)


class _Child:
    """One of the processes. Its warnings are shown once, whichever process gives them."""

    def __init__(
        self,
        rank: Rank,
        words: Sequence[str],
        console: Console,
        watch: Watch,
        warned: set[str],
        extra: Mapping[str, str],
    ) -> None:
        self.stopped = False
        self._rank, self._console, self._watch, self._warned = rank, console, watch, warned
        package = __package__.split(".", maxsplit=1)[0]
        ranks = ["--rank", str(rank.index), "--ranks", str(rank.count)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", package, *words, *ranks, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(rank) | dict(extra),
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

    def failed(self) -> bool:
        """Whether it has ended, and not well."""
        return not self.running() and self._process.returncode != 0

    def lost_contact(self) -> bool:
        """Whether it failed only because another one had, once it has ended."""
        return any(LOST in text for text in self._out)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.running():
            self.stopped = True
            self._process.send_signal(number)

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
