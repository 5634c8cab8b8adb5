"""Tests and measures against SciPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sparse_pipeline.analyze.reports.correlation.clusters import clusters
from sparse_pipeline.analyze.reports.correlation.scan import sorted_top_correlation
from sparse_pipeline.analyze.reports.position.scores import coarse_bins, profile_bins
from sparse_pipeline.analyze.result import number, plain, show
from sparse_pipeline.analyze.subject.geometry import Geometry, random_geometry
from sparse_pipeline.shared.codes.parallel import over_latents
from sparse_pipeline.shared.codes.specialisation import collisions, concentration
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


def test_clusters_and_weakest_edges() -> None:
    pairs = np.array([[0, 1], [1, 2], [0, 2], [5, 4], [7, 8], [8, 9], [9, 7], [9, 10]])
    strength = np.array([0.9, 0.85, 0.95, 0.99, 0.9, 0.8, 0.82, 0.97])
    found = clusters(pairs, strength, 12)
    assert [c.members for c in found] == [(7, 8, 9, 10), (0, 1, 2), (4, 5)]
    assert [c.weakest for c in found] == [(9, 7, 0.82), (0, 1, 0.9), (5, 4, 0.99)]
    assert clusters(np.zeros((0, 2), int), np.zeros(0), 5) == []


def test_geometry_of_all_pairs() -> None:
    import torch

    rows = torch.randn(700, 30, generator=torch.Generator().manual_seed(0))
    rows[650] = -rows[3] + 0.01 * rows[650]
    rows[651] = rows[4] * 2
    found = Geometry.of(rows)
    unit = torch.nn.functional.normalize(rows.double(), dim=1).numpy()
    cos = unit @ unit.T
    np.fill_diagonal(cos, -np.inf)
    np.testing.assert_allclose(found.max_cos, cos.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cos, found.near.astype(int), 1), found.near_cos, atol=1e-6)
    np.fill_diagonal(cos, np.inf)
    np.testing.assert_allclose(found.lowest, cos.min(axis=1), atol=1e-6)
    upper = cos[np.triu_indices(700, 1)]
    assert found.histogram.sum() == len(upper)
    assert {tuple(p) for p in found.close.tolist()} == {
        (i, j) for i, j in zip(*np.nonzero(np.abs(cos) >= 0.8), strict=True) if i < j
    }
    assert {(3, 650), (4, 651)} <= {tuple(p) for p in found.close.tolist()}
    np.testing.assert_allclose(found.cosine(np.array([3, 4]), np.array([650, 651])), cos[[3, 4], [650, 651]], atol=1e-6)
    assert random_geometry(700, 30, 0).mean() == pytest.approx(found.max_cos[:600].mean(), abs=0.02)


def test_geometry_of_one_latent() -> None:
    import torch

    found = Geometry.of(torch.ones(1, 4))
    assert (found.near.shape, found.n_close, found.histogram.sum()) == ((1, 1), 0, 0)


def test_sorted_triples_correlate_whatever_they_are() -> None:
    """requirements: the median of two independent sorted triples of exponentials is 0.956."""
    rng = np.random.default_rng(0)
    triples = -np.sort(-rng.exponential(size=(1500, 3)), axis=1)
    r = sorted_top_correlation(triples)
    assert np.median(r) == pytest.approx(0.956, abs=0.004)
    assert r[0] == pytest.approx(np.corrcoef(triples[0], triples[1])[0, 1])


@pytest.mark.parametrize("ctx", [2, 5, 11, 64, 1021, 5000])
def test_position_bins_are_nested(ctx: int) -> None:
    profile = profile_bins(ctx)
    coarse = coarse_bins(int(profile[-1]) + 1, 10)[profile]
    assert (profile[0], coarse[0]) == (0, 0)
    assert (coarse[1:] >= 1).all()
    assert coarse[-1] == min(10, ctx - 1)
    if ctx - 1 >= 10:
        np.testing.assert_array_equal(coarse[1:], np.arange(ctx - 1) * 10 // (ctx - 1) + 1)


def test_ranges_cover_every_latent_once() -> None:
    for weight in (np.ones(7), np.zeros(5), np.array([0, 0, 100, 0]), np.random.default_rng(0).random(1000) ** 8):
        seen = np.zeros(len(weight), int)

        def count(first: int, stop: int, seen: np.ndarray = seen) -> None:
            seen[first:stop] += 1

        over_latents(count, weight)
        assert (seen <= 1).all()
        assert (seen[weight > 0] == 1).all()


def test_numbers_as_a_reader_sees_them() -> None:
    assert [show(v) for v in (None, 0.1234, 1234567, 1e-5, 12.0)] == ["–", "0.123", "1,234,567", "1.0e-05", "12"]
    assert (show(0.1234, "percent"), show(float("nan"), "percent"), show([1, 2], "latents")) == ("12.3%", "–", "1, 2")
    assert plain({"a": np.array([1.0, np.nan]), 3: [np.int64(2), (True, "x")]}) == {
        "a": [1.0, None],
        "3": [2, [True, "x"]],
    }
    assert (number(np.float32(np.inf)), number(np.bool_(True))) == (None, 1)
    with pytest.raises(TypeError, match="plain"):
        plain(object())
