"""Tests and measures against SciPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sparse_pipeline.shared.codes.statistics import (
    benjamini_hochberg,
    binomial_upper,
    gamma_upper,
    kl_to_base,
    mutual_information,
    spearman_rows,
)


def test_benjamini_hochberg_is_scipys_and_skips_what_is_not_tested() -> None:
    p = np.random.default_rng(0).random(200) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))
    with_gaps = np.insert(p, [3, 50], np.nan)
    q = benjamini_hochberg(with_gaps)
    np.testing.assert_allclose(q[~np.isnan(q)], stats.false_discovery_control(p))
    assert np.isnan(q).sum() == 2
    assert len(benjamini_hochberg(np.array([]))) == 0


def test_binomial_upper_tail() -> None:
    k, n = np.array([0, 1, 5, 50]), np.array([10, 10, 10, 50])
    want = [stats.binomtest(int(a), int(b), 0.03, "greater").pvalue for a, b in zip(k, n, strict=True)]
    np.testing.assert_allclose(binomial_upper(k, n, 0.03), want)


def test_kl_of_the_base_rate_is_zero_on_average() -> None:
    rng = np.random.default_rng(0)
    base = np.array([0.1, 0.2, 0.3, 0.4, 0.0])
    counts = rng.multinomial(200, base, size=4000)
    kl = kl_to_base(counts, base)
    plug_in = np.array([stats.entropy(c[:4] / 200, base[:4], base=2) for c in counts[:50]])
    np.testing.assert_allclose(kl[:50], plug_in - 3 / (2 * 200 * np.log(2)), atol=1e-12)
    assert abs(kl.mean()) < 3 * kl.std() / np.sqrt(4000)
    assert np.isnan(kl_to_base(np.zeros((1, 5), int), base)[0])


def test_mutual_information_is_that_of_the_table() -> None:
    rng = np.random.default_rng(0)
    rows = np.array([100, 50, 70])
    fired = np.stack([rng.integers(0, r, 20) for r in rows], axis=1)
    for f, mi in zip(fired, mutual_information(fired, rows), strict=True):
        table = np.stack([f, rows - f]) / rows.sum()
        outer = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True)
        assert mi == pytest.approx((table[table > 0] * np.log2(table[table > 0] / outer[table > 0])).sum(), abs=1e-12)
    assert mutual_information(np.array([50, 25, 35]), rows) == pytest.approx(0, abs=1e-12)


def test_gamma_tail() -> None:
    x = np.array([0.5, 3.0, 9.0])
    want = stats.gamma.sf(x, 4.0, scale=0.5)
    np.testing.assert_allclose(gamma_upper(x, np.full(3, 2.0), np.full(3, 1.0)), want)
    assert gamma_upper(np.array([1.0]), np.array([0.0]), np.array([0.0])).tolist() == [1.0]


def test_spearman_is_scipys() -> None:
    matrix = np.random.default_rng(0).integers(0, 5, (10, 30)).astype(float)
    want = [stats.spearmanr(row, np.arange(30)).statistic for row in matrix]
    np.testing.assert_allclose(spearman_rows(matrix), want)
    assert np.isnan(spearman_rows(np.ones((1, 5)))[0])
