"""The glossary: short texts, and the right ones for a page."""

from __future__ import annotations

from sparse_pipeline.shared.glossary import GLOSSARY, glossary_page, terms, terms_in


def test_every_term_has_two_lines_and_one_heading() -> None:
    assert sum(map(len, GLOSSARY.values())) == len(terms()) >= 30
    lines = glossary_page().splitlines()
    for term, text in terms().items():
        assert lines.count(f"### {term}") == 1
        assert 20 < len(text) <= 240
        assert text.endswith(".")
    assert not set("`*") & set("".join(terms().values()))


def test_a_page_gets_the_terms_that_it_uses() -> None:
    assert list(terms_in("The FVU of two Shards, excluding position 0")) == ["shard", "position 0", "FVU"]
    assert terms_in("a fvu, a harvested coder and a rerun") == {}, "acronyms as they are written; whole words alone"
