"""Text folded to a terminal: no line is wider, no word is lost or broken, commands stay whole."""

from __future__ import annotations

import io
import os
import pty
import shlex
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_pipeline import pipeline
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.folding import folded, width_of

WORDS = st.text("abc./,:", min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=30), st.integers(0, 4), st.integers(30, 90))
def test_no_line_is_wider_and_every_word_is_kept(words: list[str], indent: int, width: int) -> None:
    lines = folded(" " * indent + " ".join(words), width).split("\n")
    assert all(len(line) <= width for line in lines)
    assert " ".join(lines).split() == words
    assert all(line.startswith(" " * (indent + 2)) for line in lines[1:])


def test_a_text_beside_its_label_goes_on_below_itself() -> None:
    assert folded("disk     137 MB to write, 47.2 GB free of many", 40) == (
        "disk     137 MB to write, 47.2 GB free\n         of many"
    )
    assert folded("  wide  " + "x" * 60, 40) == "  wide\n        " + "x" * 60, "a path stays whole"


@pytest.mark.parametrize("mark", ["next: ", "load: ", "interrupted: saved; next: "])
def test_a_command_to_paste_is_never_broken(mark: str) -> None:
    text = f"{mark}pipeline harvest {'--set harvest.tokens=100000 ' * 5}--name x"
    assert folded(text, 80) == text
    assert "\n" in folded("next: " + "lower train.data.batch_size, " * 6, 80), "advice is no command"


def test_without_a_terminal_lines_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = io.StringIO()
    Console(stream=out, out=out).result({}, "word " * 40)
    assert len(out.getvalue()) == 201
    monkeypatch.setenv("COLUMNS", "50")
    Console(stream=out).warn("word " * 40)
    assert max(map(len, out.getvalue().splitlines()[1:])) <= 50
    Console(out=out).result({}, "key: " + "word " * 40, as_is=True)
    assert len(out.getvalue().splitlines()[-1]) == 205, "a document of settings stays one"


def test_the_width_is_that_of_the_stream_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """stdout may be a pipe where stderr is a terminal."""
    import fcntl
    import termios

    monkeypatch.delenv("COLUMNS", raising=False)
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 61, 0, 0))
    with os.fdopen(there, "w") as stream:
        assert width_of(stream) == 61
    os.close(here)
    assert width_of(io.StringIO()) is None


FITTING = [
    "harvest --dry-run",
    "train --dry-run --variant topk --variant frozen-random-decoder --name a-long-name-of-an-ablation",
    "tune topk --dry-run",
    "plan -c gemma-2-2b-layer8",
    "sweep width.yaml --dry-run",
    "explain topk --dry-run",
    "inspect demo",
    "inspect topk",
    "export topk {out}/sae --to saelens",
    "publish topk me/coder --out {out}/hub",
    "train --set train.coder.lantents=5 --set train.optimiser.lr=3 --set harvest.tokens=many",
    "harvest --set harvest.sites=[layer_02.nowhere,layer_99.mlp_out]",
    "export topk {out}/x --to plain",
]


@pytest.mark.parametrize("line", FITTING)
def test_what_a_command_prints_fits_eighty_columns(
    line: str,
    workshop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All but commands to paste, and a path that alone is wider."""
    monkeypatch.chdir(workshop)
    monkeypatch.setenv("COLUMNS", "80")
    assert pipeline.run(shlex.split(line.format(out=tmp_path))) in (0, 2)
    shown = capsys.readouterr()
    lines = [one for one in (shown.out + shown.err).splitlines() if not one.startswith(("next: ", "load: "))]
    assert lines
    assert [one for one in lines if len(one) > 80 and len(one.split()) > 1] == []
