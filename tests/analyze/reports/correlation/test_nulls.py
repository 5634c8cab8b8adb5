"""The nulls of correlation: what is sampled, and what sorted lists correlate by themselves."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_pipeline.analyze.reports.correlation.nulls import null_sample, sorted_top_correlation


def test_sorted_triples_correlate_whatever_they_are() -> None:
    """The median over pairs of independent sorted triples of exponentials is 0.956."""
    rng = np.random.default_rng(0)
    triples = -np.sort(-rng.exponential(size=(1500, 3)), axis=1)
    r = sorted_top_correlation(triples)
    assert np.median(r) == pytest.approx(0.956, abs=0.004)
    assert r[0] == pytest.approx(np.corrcoef(triples[0], triples[1])[0, 1])


def test_the_sample_of_the_null_is_the_same_everywhere() -> None:
    some = null_sample(5000, 100)
    assert len(set(some.tolist())) == 100
    assert (np.diff(some) > 0).all()
    np.testing.assert_array_equal(some, null_sample(5000, 100))
    assert null_sample(7, 100).tolist() == list(range(7))
