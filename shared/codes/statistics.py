"""Tests and measures that reports share. Float64; information is in bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def benjamini_hochberg(p: NDArray[np.floating]) -> Array:
    """q-values of the tests p [n] (Benjamini & Hochberg 1995): the smallest false discovery rate at which each is
    called.

    NaN stays NaN and is no test.
    """
    q = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    m = len(order)
    scaled = p[order] * m / np.arange(1, m + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def binomial_upper(k: NDArray[np.integer], n: NDArray[np.integer], p: float) -> Array:
    """Exact P(X ≥ k) for X ~ Binomial(n, p), elementwise."""
    tail: Array = np.asarray(stats.binom.sf(np.asarray(k) - 1, n, p))
    return tail


def kl_to_base(counts: NDArray[np.integer], base: NDArray[np.floating]) -> Array:
    """KL divergence in bits of each row's distribution over bins from the base rate, Miller–Madow corrected.

    The plug-in estimate exceeds the truth by (K − 1)/(2n ln 2) on average where K bins have a base rate; that is taken
    off, so a latent that follows the base rate scores about 0 (and half of them a little less).

    Args:
        counts: [F, bins].
        base: [bins] sums to 1; bins of base 0 are left out.

    Returns:
        [F], NaN where a row has no counts.
    """
    used = base > 0
    c, q = counts[:, used].astype(np.float64), base[used]
    n = c.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = c / n[:, None]
        terms = np.where(p > 0, p * np.log2(p / q), 0.0)
        kl: Array = terms.sum(axis=1) - (used.sum() - 1) / (2 * n * np.log(2))
    kl[n == 0] = np.nan
    return kl


def mutual_information(fired: NDArray[np.number], rows: NDArray[np.number]) -> Array:
    """Mutual information in bits of firing (yes or no) and bin, plug-in.

    Args:
        fired: [..., bins] rows of each bin on which it fires.
        rows: [bins] rows of each bin.

    Returns:
        [...].
    """
    n, total = fired.astype(np.float64), rows.astype(np.float64)
    n_all, rows_all = n.sum(axis=-1, keepdims=True), total.sum()
    silent = total - n

    def part(count: Array, expected: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(count > 0, count * np.log2(count / expected), 0.0)

    terms = part(n, n_all * total / rows_all) + part(silent, (rows_all - n_all) * total / rows_all)
    mi: Array = terms.sum(axis=-1) / rows_all
    return np.maximum(mi, 0.0)


def gamma_upper(value: NDArray[np.floating], null_mean: NDArray[np.floating], null_var: NDArray[np.floating]) -> Array:
    """P(X ≥ value) for the gamma distribution with that mean and variance, elementwise; 1 where the null does not vary.

    A plug-in mutual information under its null is approximately gamma distributed (a scaled χ² when rows are
    independent;
    the variance absorbs that firings come in bursts), so a few hundred replicates fix small p-values.
    """
    ok = (null_var > 0) & (null_mean > 0)
    mean, var = np.where(ok, null_mean, 1.0), np.where(ok, null_var, 1.0)
    p: Array = np.where(ok, stats.gamma.sf(value, mean**2 / var, scale=var / mean), 1.0)
    return p


def spearman_rows(matrix: NDArray[np.floating]) -> Array:
    """Spearman's ρ of each row [F, P] with its column number; NaN where a row is constant."""
    ranks = stats.rankdata(matrix, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    place = np.arange(matrix.shape[1], dtype=np.float64)
    place -= place.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: Array = (ranks @ place) / np.sqrt((ranks**2).sum(axis=1) * (place**2).sum())
    return rho
