"""Sampled rows and their labels, from a cache of text and from one of prompts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sparse_pipeline.analyze.probes.labelled_rows import LabelSample, labelled, usual_columns
from sparse_pipeline.analyze.probes.labels import family_of, token_texts
from sparse_pipeline.analyze.reports.absorption.config import AbsorptionConfig
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.cache.documents import DOCUMENTS
from sparse_pipeline.shared.errors import UsageError
from tests.analyze.hierarchy import Hierarchy, absorbing_coder, hierarchy
from tests.analyze.labelled_cache import CTX, SITE, labelled_cache, report


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return hierarchy(n=9000, seed=3)


@pytest.fixture(scope="module")
def cache(tree: Hierarchy, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return labelled_cache(tree, tmp_path_factory.mktemp("planted") / "cache")


def test_domains_come_from_the_cache(cache: Cache, tree: Hierarchy) -> None:
    sample = LabelSample(1000, None, 1, 50, 0)
    assert "domain" not in map(family_of, labelled(cache, SITE, sample).labels.names)
    with pytest.raises(UsageError, match="has no labels 'domain'"):
        labelled(cache, SITE, LabelSample(1000, ("domain",), 1, 50, 0))
    lines = [json.dumps({"doc_id": d, "domain": "even" if d % 2 == 0 else "odd"}) for d in range(cache.n_seq)]
    (cache.path / DOCUMENTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        found = labelled(cache, SITE, LabelSample(1001, ("domain",), 1, 50, 0))
        assert found.labels.names == ("domain:even", "domain:odd")
        even = cache.doc_id.reshape(-1)[found.rows] % 2 == 0
        assert np.array_equal(found.labels.values[:, 0] == 1, even)
    finally:
        (cache.path / DOCUMENTS).unlink()


def test_prompts_are_measured_at_their_own_rows(cache: Cache, tree: Hierarchy) -> None:
    """A cache of prompts: one row each, the labels its columns, and prompts of one word on one side of a split."""
    targets = [s * CTX + 1 + s % (CTX - 1) for s in range(cache.n_seq)]
    lines = [
        json.dumps(
            {"doc_id": s, "labels": {"colour": "red" if s % 3 else "blue", "word": f"w{s // 4}"}, "target_row": row}
        )
        for s, row in enumerate(targets)
    ]
    (cache.path / DOCUMENTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        found = labelled(cache, SITE, LabelSample(5000, None, 2, 50, 1))
        assert found.rows.tolist() == targets
        assert found.labels.names == ("colour:blue", "colour:red")
        assert torch.equal(found.x, cache.rows(SITE, targets).float())
        for split, _ in found.splits:
            words = [set((part // 4).tolist()) for part in (split.train, split.validation, split.test)]
            assert sum(map(len, words)) == 250
        config = AbsorptionConfig(families=("punctuation",), rows=9000, splits=1, min_true_positives=1)
        result = report("absorption", config, cache, absorbing_coder(tree, 0.25))
        assert result.data["rows"] == cache.n_seq
    finally:
        (cache.path / DOCUMENTS).unlink()


def test_usual_columns_are_categories() -> None:
    columns: dict[str, dict[int, object]] = {
        "flag": {0: True, 1: False, 2: None},
        "kind": {0: "a", 1: "b"},
        "constant": {0: "a", 1: "a"},
        "length": {0: 3, 1: 4},
        "name": {i: f"n{i}" for i in range(65)},
    }
    assert usual_columns(columns) == ["flag", "kind"]


def test_rare_labels_are_left_out(cache: Cache) -> None:
    with pytest.raises(UsageError, match="none of the 1 labels has 5000 positive"):
        labelled(cache, SITE, LabelSample(1000, ("digit",), 1, 5000, 0))
    found = labelled(cache, SITE, LabelSample(1000, ("digit", "first_letter"), 1, 50, 0))
    assert found.labels.names == ("digit",)
    assert len(found.left_out) == 26  # every word begins with a w


def test_texts_of_the_planted_tokenizer(cache: Cache) -> None:
    assert token_texts(cache) == ["", "", "", "7", "!", " Word", " word"]
