"""Messages and progress on stderr, so that stdout holds only the result."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

from .folding import folded, width_of


class Progress(Protocol):
    """A running count. `advance` may be called from any thread."""

    def advance(self, n: float = 1, row: str | None = None, **fields: object) -> None:
        """Count `n` more units; `fields` are shown beside the rate (`loss=0.31`), or in a table, in the row named."""


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
        text = folded(text, width_of(self.stream))
        if self._bar is not None:  # above the bar, not through it
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def result(self, document: Any, text: str = "", *, as_is: bool = False) -> None:
        """The command's result on stdout: the JSON document with `--json`, else the text.

        Args:
            as_is: the text is for programs too, or coloured: its lines stay whole on a narrow terminal.
        """
        out = self._out or sys.stdout
        if self.json:
            print(
                json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False),
                file=out,
                flush=True,
            )
        elif text:
            print(text if as_is else folded(text, width_of(out)), file=out, flush=True)

    @contextlib.contextmanager
    def progress(self, total: float | None, unit: str = "", label: str = "", done: float = 0) -> Iterator[Progress]:
        """A progress bar on a terminal, plain lines elsewhere: after a second, then every few; with rate and time left.

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
        import rich.live

        screen = rich.console.Console(file=self.stream)
        counter = _Counter(total, unit, done)
        lock = threading.Lock()

        def draw() -> Any:
            with lock:
                return counter.drawn(label, screen.width)

        class Bar:
            def advance(self, n: float = 1, row: str | None = None, **fields: object) -> None:
                with lock:
                    counter.add(n, row, fields)

        with rich.live.Live(console=screen, refresh_per_second=4, get_renderable=draw) as live:
            self._bar = live
            try:
                yield Bar()
            finally:
                self._bar = None


WINDOW = 20.0
"""Seconds that a rate is taken over."""

FIRST = 1.0
"""Seconds until the first plain line."""

COUNTS = 45
"""Cells that a label leaves to share, time left, count and rate."""

BAR = 20
"""Cells of a bar; it keeps them on every terminal."""


class _Counter:
    """Counts, rates and time left as text.

    The rate runs from the first units on: what comes before them (loading, compiling, the first batch itself) says
    nothing about those to come. It is that of the last WINDOW seconds.
    """

    def __init__(self, total: float | None, unit: str, done: float) -> None:
        self.total, self.unit, self.done = total, unit, done
        self.start, self.first = time.monotonic(), done
        self.began: tuple[float, float] | None = None  # time and count after the first units
        self.recent: deque[tuple[float, float]] = deque()
        self.fields: dict[str, object] = {}
        self.rows: dict[str, dict[str, object]] = {}

    def add(self, n: float, row: str | None, fields: dict[str, object]) -> None:
        (self.fields if row is None else self.rows.setdefault(row, {})).update(fields)
        if not n:
            return
        self.done += n
        now = time.monotonic()
        self.began = self.began or (now, self.done)
        if not self.recent or now - self.recent[-1][0] > WINDOW / 100:
            self.recent.append((now, self.done))
        while len(self.recent) > 2 and now - self.recent[1][0] > WINDOW:
            self.recent.popleft()

    @property
    def finished(self) -> bool:
        return self.total is not None and self.done >= self.total

    def rate(self) -> float | None:
        """Units per second; at the end, of the whole. None before there is anything to tell it from."""
        now = time.monotonic()
        if self.began is None:
            return None
        if self.finished:
            since, count = self.began if self.done > self.began[1] else (self.start, self.first)
        else:
            since, count = self.recent[0]
        seconds = now - since
        return (self.done - count) / seconds if seconds > 0 and self.done > count else None

    def left(self) -> str:
        """ "2m10s left", or "" where it is not known."""
        rate = self.rate()
        if self.total is None or self.finished or rate is None:
            return ""
        return f"{duration((self.total - self.done) / rate)} left"

    def count(self) -> list[str]:
        """The parts of a line, the most important first: what a narrow terminal cuts is the end."""
        share = f"{self.done / self.total:.0%}" if self.total else ""
        of = f"/{si(self.total)}" if self.total else ""
        rate = self.rate()
        speed = f"{si(rate)} {self.unit or 'n'}/s" if rate is not None else ""
        return [part for part in (share, self.left(), f"{si(self.done)}{of} {self.unit}".rstrip(), speed) if part]

    def extra(self) -> list[str]:
        return [f"{name} {shown(value)}" for name, value in self.fields.items()]

    def line(self, label: str) -> str:
        return (f"{label}: " if label else "") + " · ".join([*self.count(), *self.extra()])

    def table(self) -> str:
        """The rows, one line each; "" without rows."""
        from .text_table import text_table

        names = list(dict.fromkeys(name for fields in self.rows.values() for name in fields))
        rows = [
            [row, *(shown(fields[name]) if name in fields else "" for name in names)]
            for row, fields in self.rows.items()
        ]
        return text_table(rows, ["", *names])

    def legend(self) -> str:
        """One line on each heading of the table; "" without rows."""
        from .text_table import legend

        return legend(list(dict.fromkeys(name for fields in self.rows.values() for name in fields)))

    def drawn(self, label: str, width: int) -> Any:
        """The bar and its table for a terminal of this width."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1))
        text = Text(" · ".join([*self.count(), *self.extra()]), no_wrap=True, overflow="ellipsis")
        name = Text(label, no_wrap=True)
        name.truncate(max(8, width - BAR - COUNTS - 2), overflow="ellipsis")
        text.truncate(max(10, width - BAR - 1 - (name.cell_len + 1 if label else 0)), overflow="ellipsis")
        bar = ProgressBar(total=self.total, completed=self.done, width=BAR)
        line.add_row(*([name] if label else []), bar, text)
        table = self.table()
        below = [Text(table, no_wrap=True, overflow="ellipsis"), Text(self.legend(), "dim")] if table else []
        return Group(line, *below)


def shown(value: object) -> str:
    """A figure beside a rate: four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Lines:
    """Plain progress: one line after a second, one every `interval` seconds and one at the end; the headings of a table
    of runs are explained below the last."""

    def __init__(self, console: Console, total: float | None, unit: str, label: str, done: float) -> None:
        self.console, self.label = console, label
        self.counter = _Counter(total, unit, done)
        self.lock = threading.Lock()
        self.due = self.counter.start + min(FIRST, console.interval)
        self.said: float | None = None  # the count of the last line

    def advance(self, n: float = 1, row: str | None = None, **fields: object) -> None:
        with self.lock:
            self.counter.add(n, row, fields)
            now = time.monotonic()
            if now >= self.due and self.counter.done != self.said:
                self.due = now + self.console.interval
                self._say()

    def _say(self) -> None:
        self.said = self.counter.done
        self.console.info(self.counter.line(self.label))
        if table := self.counter.table():
            self.console.info(table)

    def close(self) -> None:
        if self.said != self.counter.done:
            self._say()
        if legend := self.counter.legend():
            self.console.info(legend)


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
