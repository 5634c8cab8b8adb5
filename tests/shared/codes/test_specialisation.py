"""Specialised or general, against counting pairs."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_pipeline.shared.codes.specialisation import collisions, concentration


def test_collisions_are_the_share_of_equal_pairs() -> None:
    labels = np.array([[1, 1, 1, 1], [1, 2, 3, 4], [5, 2, 5, 2], [7, 7, 0, 7]])
    np.testing.assert_allclose(collisions(labels), [1, 0, 2 / 6, 3 / 6])


def test_specialised_only_beyond_the_corpus() -> None:
    """A corpus that repeats itself makes every latent repeat itself: that is not specialisation."""
    rng = np.random.default_rng(0)
    corpus = np.array([200, 100, 100] + [1] * 600)
    share = corpus / corpus.sum()
    labels = rng.choice(len(corpus), size=(500, 50), p=share)
    labels[0] = 300
    labels[1, :45] = 2
    found = concentration(labels, np.arange(500) != 2, corpus, 0, 0.01, 0.1)
    assert np.flatnonzero(found.specialised).tolist() == [0, 1]
    assert np.isnan(found.collision[2])
    assert found.effective[0] == 1
    assert found.base == pytest.approx((share**2).sum())


def test_a_corpus_of_two_domains_raises_the_gate() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (300, 64))
    labels[0] = 1
    found = concentration(labels, np.ones(300, bool), np.array([500, 500]), 0, 0.01, 0.1)
    assert np.flatnonzero(found.specialised).tolist() == [0]
