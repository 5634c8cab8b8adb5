"""Labels against answers written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparse_pipeline.analyze.probes.labels import (
    Labels,
    categories,
    concatenate,
    content_rows,
    draw,
    row_labels,
    token_table,
    token_texts,
    word_of,
)
from sparse_pipeline.shared.cache import Cache, Flag
from sparse_pipeline.shared.errors import DataError, UsageError
from tests.synthetic import make_cache

TEXTS = ["", " Apple", "bees", " running", "42", " ,", "\n", "a1", " zoo", "–"]


def column(table: Labels, name: str) -> list[int]:
    return table.values[:, table.names.index(name)].tolist()


def test_word_is_letters_after_one_space() -> None:
    assert [word_of(text) for text in (" cat", "cat", "  cat", "c4t", "", " ", "café")] == [
        "cat", "cat", None, None, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("first_letter", "first_letter:a", [-1, 1, 0, 0, -1, -1, -1, -1, 0, -1]),
        ("first_letter", "first_letter:z", [-1, 0, 0, 0, -1, -1, -1, -1, 1, -1]),
        ("capitalised", "capitalised", [-1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("digit", "digit", [-1, 0, 0, 0, 1, 0, 0, 1, 0, 0]),
        ("punctuation", "punctuation", [-1, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
        ("leading_space", "leading_space", [-1, 1, 0, 1, 0, 1, 0, 0, 1, 0]),
        ("suffix", "suffix:ing", [-1, 0, 0, 1, -1, -1, -1, -1, 0, -1]),
        ("suffix", "suffix:s", [-1, 0, 1, 0, -1, -1, -1, -1, 0, -1]),
    ],
)
def test_token_families(family: str, name: str, expected: list[int]) -> None:
    assert column(token_table(TEXTS, family), name) == expected


def test_twenty_six_letters() -> None:
    table = token_table(TEXTS, "first_letter")
    assert len(table.names) == 26
    words = table.values[:, 0] >= 0
    assert (table.values[words].sum(1) == 1).all()  # every word has exactly one first letter


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path / "c", n_seq=20, ctx=8, vocab=len(TEXTS), packing="document", doc_length=(3, 12))


def test_row_labels_follow_the_tokens(cache: Cache) -> None:
    rows = content_rows(cache)
    labels = row_labels(cache, rows, TEXTS, ["digit", "next_token", "position"])
    flat, ctx = cache.tokens.reshape(-1), cache.ctx
    flags, doc = cache.flags.reshape(-1), cache.doc_id.reshape(-1)
    for i, row in enumerate(rows.tolist()):
        values = dict(zip(labels.names, labels.values[i].tolist(), strict=True))
        assert values["digit"] == int(any(c.isdigit() for c in TEXTS[flat[row]]))
        position = row % ctx
        assert [values[f"position:{b}"] for b in range(7)] == [int(b == position - 1) for b in range(7)]
        last = position == ctx - 1 or flags[row + 1] & Flag.PADDING or doc[row + 1] != doc[row]
        after = "" if last else TEXTS[flat[row + 1]]
        assert values["next_token:digit"] == (-1 if last else int(any(c.isdigit() for c in after)))
        assert values["next_token:whitespace"] == (-1 if last else int(after == "\n"))


def test_content_rows_are_neither_special_nor_padding(cache: Cache) -> None:
    rows = content_rows(cache)
    flags = cache.flags.reshape(-1)[rows]
    assert not (flags & int(Flag.BOS | Flag.EOS | Flag.PADDING)).any()
    others = np.setdiff1d(np.arange(cache.n_rows), rows)
    rest = cache.flags.reshape(-1)[others] & int(Flag.BOS | Flag.EOS | Flag.PADDING)
    assert (rest[others % cache.ctx != 0] != 0).all()
    sample = draw(rows, 10, seed=3)
    assert len(set(sample.tolist())) == 10
    assert np.isin(sample, rows).all()
    assert np.array_equal(sample, draw(rows, 10, seed=3))
    assert np.array_equal(draw(rows, 10**6, seed=3), rows)


def test_domains_and_columns(cache: Cache) -> None:
    rows = content_rows(cache)
    docs = cache.doc_id.reshape(-1)[rows]
    names = {0: "news", 1: "code", 2: "code"}
    labels = row_labels(cache, rows, TEXTS, ["domain"], {"domain": names})
    assert labels.names == ("domain:code", "domain:news")
    expected = [[1, 0] if names.get(d) == "code" else [0, 1] if d == 0 else [-1, -1] for d in docs.tolist()]
    assert labels.values.tolist() == expected
    with pytest.raises(UsageError, match="has no labels 'domain'"):
        row_labels(cache, rows, TEXTS, ["domain"])
    with pytest.raises(UsageError, match="has no labels 'domains'; did you mean 'domain'"):
        row_labels(cache, rows, TEXTS, ["domains"], {"domain": names})


def test_categories() -> None:
    assert categories("plural", [True, False, None]).values.tolist() == [[1], [0], [-1]]
    size = categories("size", ["b", "", "a", "b"])
    assert size.names == ("size:a", "size:b")
    assert size.values.tolist() == [[0, 1], [-1, -1], [1, 0], [0, 1]]
    with pytest.raises(UsageError, match="65 distinct"):
        categories("word", [f"w{i}" for i in range(65)])


def test_join_and_choose() -> None:
    joined = concatenate([categories("plural", [True, False, True, False]), categories("size", ["b", "a", "b", "b"])])
    assert joined.names == ("plural", "size:a", "size:b")
    assert joined.values.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 0, 1]]
    assert joined.with_enough(2).names == ("plural",)
    assert joined.with_enough(1).names == joined.names
    assert joined.columns([2, 0]).values.tolist() == [[1, 1], [0, 0], [1, 1], [1, 0]]


def test_texts_need_a_tokenizer(cache: Cache) -> None:
    with pytest.raises(DataError, match="no tokenizer"):
        token_texts(cache)
