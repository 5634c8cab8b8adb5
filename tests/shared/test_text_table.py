"""Columns of one width, aligned as asked; wide characters count as two; markup is text; a narrow terminal breaks
headings, then one column, at words; headings are explained."""

from __future__ import annotations

import pytest

from sparse_pipeline.shared.glossary import COLUMNS
from sparse_pipeline.shared.text_table import explained_table, legend, text_table


def test_the_first_column_is_left_and_the_others_right() -> None:
    assert text_table([["topk", "0.5"], ["a", "12.25"]], ["run", "FVU"]) == "run     FVU\ntopk    0.5\na     12.25"


def test_all_left_without_a_header() -> None:
    assert text_table([["cache", "c"], ["run", "long"]], left=(0, 1)) == "cache  c\nrun    long"


def test_wide_characters_and_square_brackets_are_text() -> None:
    assert text_table([["名前", "1"], ["[red]x", "22"]]) == "名前     1\n[red]x  22"


def test_no_rows_no_table() -> None:
    assert text_table([], ["run"]) == ""


def test_headings_break_at_words_before_a_column_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["a-long-name-of-a-run (control)", "0.5", "12"]]
    monkeypatch.setenv("COLUMNS", "50")
    wide = "run                             held-out FVU  pairs"
    broken = "                                held-out\nrun                                  FVU  pairs"
    line = "a-long-name-of-a-run (control)       0.5     12"
    assert text_table(rows, ["run", "held-out FVU", "pairs"]) == f"{broken}\n{line}"
    assert text_table(rows, ["run", "held-out FVU", "pairs"], breaks=0) == f"{broken}\n{line}", "that was enough"
    monkeypatch.setenv("COLUMNS", str(len(wide)))
    assert text_table(rows, ["run", "held-out FVU", "pairs"]).startswith(wide)
    monkeypatch.setenv("COLUMNS", "40")
    lines = text_table(rows, ["run", "held-out FVU", "pairs"], breaks=0).splitlines()
    assert max(map(len, lines)) <= 40
    assert [line[:22].rstrip() for line in lines[2:]] == ["a-long-name-of-a-run", "  (control)"]


def test_a_legend_says_what_the_headings_mean_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert legend(["run", "L0", "dead", "L0"]) == f"  L0    {COLUMNS['L0']}\n  dead  {COLUMNS['dead']}"
    own = {"toy": "`toy` firings per latent. A second sentence.", "L0": "not this one"}
    told = explained_table([["a", "1", "2"]], ["run", "toy", "L0"], definitions=own)
    assert told.splitlines()[2:] == ["  toy  toy firings per latent", f"  L0   {COLUMNS['L0']}"]
    assert legend(["run"]) == ""


def test_every_line_of_a_legend_fits_into_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    narrow = {heading: text for heading, text in COLUMNS.items() if len(heading) <= 20}
    assert len(legend(list(narrow)).splitlines()) == len(narrow), "one line each"
    assert not set("`*.") & set("".join(COLUMNS.values()).replace("pos. 0", "").replace("train.ema", ""))
