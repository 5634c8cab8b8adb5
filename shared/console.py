"""Messages and progress on stderr, so that stdout holds only the result."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """A running count. `advance` may be called from any thread."""

    def advance(self, n: float = 1, **fields: object) -> None:
        """Count `n` more units; `fields` are shown beside the rate (`loss=0.31`)."""


class Console:
    """Text and progress on stderr, one result on stdout.

    Args:
        json: the result is one JSON document instead of text.
        quiet: print warnings only; the default of library code called without a console.
        interval: seconds between progress lines when stderr is not a terminal.
    """

    def __init__(
        self,
        json: bool = False,
        quiet: bool = False,
        stream: TextIO | None = None,
        out: TextIO | None = None,
        interval: float = 5.0,
    ) -> None:
        self.json = json
        self.quiet = quiet
        self.interval = interval
        self._stream = stream
        self._out = out
        self._bar: Any = None

    @property
    def stream(self) -> TextIO:
        return self._stream or sys.stderr

    def info(self, text: str) -> None:
        if not self.quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def _line(self, text: str) -> None:
        if self._bar is not None:  # above the bar, not through it
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def result(self, document: Any, text: str = "") -> None:
        """The command's result on stdout: the JSON document with `--json`, else the text."""
        if self.json:
            print(
                json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False),
                file=self._out or sys.stdout,
                flush=True,
            )
        elif text:
            print(text, file=self._out or sys.stdout, flush=True)

    @contextlib.contextmanager
    def progress(self, total: float | None, unit: str = "", label: str = "", done: float = 0) -> Iterator[Progress]:
        """A progress bar on a terminal, a plain line every few seconds elsewhere; both with rate and time left.

        Args:
            total: units of the whole work, None when unknown.
            done: units that an earlier run finished; excluded from the rate.
        """
        if not self.quiet and self._bar is None and self.stream.isatty():
            with self._terminal(total, unit, label, done) as bar:
                yield bar
        else:
            lines = _Lines(self, total, unit, label, done)
            yield lines
            lines.close()

    @contextlib.contextmanager
    def _terminal(self, total: float | None, unit: str, label: str, done: float) -> Iterator[Progress]:
        import rich.console
        import rich.progress

        columns: list[Any] = [
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=30),
            rich.progress.TextColumn("{task.fields[count]}"),
            rich.progress.TextColumn("{task.fields[extra]}"),
        ]
        bar = rich.progress.Progress(*columns, console=rich.console.Console(file=self.stream), refresh_per_second=4)
        task = bar.add_task(label, total=total, count="", extra="")
        bar.update(task, completed=done)
        counter = _Counter(total, unit, done)
        lock = threading.Lock()

        class Bar:
            def advance(self, n: float = 1, **fields: object) -> None:
                with lock:
                    counter.add(n, fields)
                    bar.update(task, completed=counter.done, count=counter.count(), extra=counter.extra())

        with bar:
            self._bar = bar
            try:
                yield Bar()
            finally:
                self._bar = None


class _Counter:
    """Counts and rates as text."""

    def __init__(self, total: float | None, unit: str, done: float) -> None:
        self.total, self.unit, self.done, self.first = total, unit, done, done
        self.start = time.monotonic()
        self.fields: dict[str, object] = {}

    def add(self, n: float, fields: dict[str, object]) -> None:
        self.done += n
        self.fields.update(fields)

    def count(self) -> str:
        seconds = max(time.monotonic() - self.start, 1e-9)
        rate = (self.done - self.first) / seconds
        of = f"/{si(self.total)} ({self.done / self.total:.0%})" if self.total else ""
        left = (
            f", {duration((self.total - self.done) / rate)} left"
            if self.total and rate > 0 and self.done < self.total
            else ""
        )
        return f"{si(self.done)}{of} {self.unit}, {si(rate)}/s{left}".replace(" ,", ",")

    def extra(self) -> str:
        return " ".join(
            f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in self.fields.items()
        )


class _Lines:
    """Plain progress: one line every `interval` seconds and one at the end."""

    def __init__(self, console: Console, total: float | None, unit: str, label: str, done: float) -> None:
        self.console, self.label = console, label
        self.counter = _Counter(total, unit, done)
        self.lock = threading.Lock()
        self.last = self.counter.start
        self.said: float | None = None  # the count of the last line

    def advance(self, n: float = 1, **fields: object) -> None:
        with self.lock:
            self.counter.add(n, fields)
            if time.monotonic() - self.last >= self.console.interval:
                self.last = time.monotonic()
                self._say()

    def _say(self) -> None:
        self.said = self.counter.done
        parts = (f"{self.label}:" if self.label else "", self.counter.count(), self.counter.extra())
        self.console.info(" ".join(part for part in parts if part))

    def close(self) -> None:
        if self.said != self.counter.done:
            self._say()


def count(n: int, noun: str) -> str:
    """ "1 run", "2 runs", "1,024 runs"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def si(number: float) -> str:
    """1234567 → "1.23M"; whole numbers below 10,000 stay as they are: "3,870"."""
    if abs(number) < 10_000:
        return f"{number:,.0f}" if number == int(number) or abs(number) >= 100 else f"{number:.3g}"
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:.3g}"


def size(n_bytes: float) -> str:
    """Bytes in decimal units, as disks are sold: 1500000 → "1.5 MB"."""
    for factor, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {name}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float) -> str:
    """ "45s", "3m20s", "2h05m"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
