from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import time

import pytest

from sparse_pipeline.shared.console import Console, count, duration, si, size
from sparse_pipeline.shared.glossary import COLUMNS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_result_is_the_only_thing_on_stdout() -> None:
    err, out = io.StringIO(), io.StringIO()
    console = Console(json=True, stream=err, out=out)
    console.info("reading")
    console.warn("odd")
    with console.progress(2, "rows", "read") as progress:
        progress.advance(2, loss=0.25)
    console.result({"a": 1}, "text")
    assert json.loads(out.getvalue()) == {"a": 1}
    lines = err.getvalue().splitlines()
    assert lines[:2] == ["reading", "warning: odd"]
    assert re.fullmatch(r"read: 100% · 2/2 rows · \S+ rows/s · loss 0.25", lines[2])


def test_text_without_json() -> None:
    out = io.StringIO()
    Console(out=out, stream=io.StringIO()).result({"a": 1}, "text")
    assert out.getvalue() == "text\n"


def test_not_a_number_is_never_printed_as_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Console(json=True, out=io.StringIO()).result({"a": float("nan")})


def test_quiet_says_only_warnings() -> None:
    err = io.StringIO()
    console = Console(quiet=True, stream=err)
    console.info("reading")
    with console.progress(1) as progress:
        progress.advance()
    console.warn("odd")
    assert err.getvalue() == "warning: odd\n"


def test_lines_between_and_at_the_end() -> None:
    err = io.StringIO()
    with Console(stream=err, interval=0).progress(4, "shards", "write", done=1) as progress:
        progress.advance()
        progress.advance(2)
    lines = err.getvalue().splitlines()
    assert lines[0].startswith("write: 50% · 2/4 shards")
    assert "left" not in lines[0], "the first units say nothing about the rate"
    assert lines[-1].startswith("write: 100% · 4/4 shards · ")


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_counts_from_the_first_units_and_follows_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of loading, ten units of a second each, then of four: 80 more take 320 s."""
    clock, err = Clock(), io.StringIO()
    monkeypatch.setattr(time, "monotonic", clock)
    with contextlib.suppress(KeyboardInterrupt), Console(stream=err, interval=1).progress(100, "rows") as progress:
        for seconds in (10, *[1] * 10, *[4] * 9):
            clock.now += seconds
            progress.advance()
        raise KeyboardInterrupt
    lines = err.getvalue().splitlines()
    assert lines[0] == "1% · 1/100 rows"
    assert lines[10] == "11% · 1m29s left · 11/100 rows · 1 rows/s"
    assert lines[-1] == "20% · 5m20s left · 20/100 rows · 0.25 rows/s"


def test_several_runs_are_rows_of_a_table() -> None:
    err = io.StringIO()
    with Console(stream=err, interval=3600).progress(2, "rows", "train") as progress:
        progress.advance(0, "topk", loss=0.5, FVU=0.25)
        progress.advance(2, "matryoshka", loss=0.75)
    assert [line.split() for line in err.getvalue().splitlines()[1:]] == [
        ["loss", "FVU"],
        ["topk", "0.5", "0.25"],
        ["matryoshka", "0.75"],
        *(f"{heading} {COLUMNS[heading]}".split() for heading in ("loss", "FVU")),
    ]


@pytest.mark.parametrize("width", [50, 80])
def test_a_narrow_terminal_cuts_neither_bar_nor_time_left(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    err, clock = Terminal(), Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    with contextlib.suppress(KeyboardInterrupt), Console(stream=err).progress(10**6, "tokens", "train a") as progress:
        for _ in range(3):
            clock.now += 5
            progress.advance(1000, loss=0.5, disk="120 kB/s", tokenise="97%", forward="3%")
        raise KeyboardInterrupt
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err.getvalue()).replace("\r", "\n").rstrip().splitlines()[-1]
    assert "1h23m left" in last
    assert last.count("━") == 20
    assert len(last) <= width


def test_an_interrupted_count_is_not_shown_as_finished() -> None:
    err = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Console(stream=err).progress(4, "steps", "train") as progress:
        progress.advance(3)
        raise KeyboardInterrupt
    assert "4/4" not in err.getvalue()


def test_advance_from_threads() -> None:
    err = io.StringIO()
    with Console(stream=err, interval=3600).progress(400, "n") as progress:
        threads = [threading.Thread(target=lambda: [progress.advance() for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert err.getvalue().startswith("100% · 400/400 ")


def test_bar_on_a_terminal() -> None:
    err = Terminal()
    console = Console(stream=err)
    with console.progress(10, "steps", "train") as progress:
        progress.advance(5, loss=0.5)
        console.info("checkpoint [saved]")
        with console.progress(3, "rows", "inner") as inner:
            inner.advance(3)
        progress.advance(5, loss=0.25)
    shown = err.getvalue()
    assert "checkpoint [saved]" in shown
    assert "100% · 10/10 steps" in shown
    assert "loss 0.25" in shown
    assert "inner: 100% · 3/3" in shown


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (0.1234, "0.123"),
        (999, "999"),
        (3870, "3,870"),
        (9999, "9,999"),
        (262144, "262k"),
        (5e6, "5M"),
        (2.5e9, "2.5G"),
    ],
)
def test_si(number: float, text: str) -> None:
    assert si(number) == text


def test_count() -> None:
    assert [count(n, "run") for n in (0, 1, 2, 1024)] == ["0 runs", "1 run", "2 runs", "1,024 runs"]


def test_size_and_duration() -> None:
    assert [size(n) for n in (12, 1500, 46e9)] == ["12 B", "1.5 kB", "46 GB"]
    assert [duration(s) for s in (4.6, 200, 7500)] == ["5s", "3m20s", "2h05m"]
