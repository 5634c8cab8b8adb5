"""Columns of one width, aligned as asked; wide characters count as two; markup is text."""

from __future__ import annotations

from sparse_pipeline.shared.text_table import text_table


def test_the_first_column_is_left_and_the_others_right() -> None:
    assert text_table([["topk", "0.5"], ["a", "12.25"]], ["run", "FVU"]) == "run     FVU\ntopk    0.5\na     12.25"


def test_all_left_without_a_header() -> None:
    assert text_table([["cache", "c"], ["run", "long"]], left=(0, 1)) == "cache  c\nrun    long"


def test_wide_characters_and_square_brackets_are_text() -> None:
    assert text_table([["名前", "1"], ["[red]x", "22"]]) == "名前     1\n[red]x  22"


def test_no_rows_no_table() -> None:
    assert text_table([], ["run"]) == ""
