"""Pair sums against dense float64 algebra."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_pipeline.analyze.reports.correlation.pair_sums import MAX_ROWS, PairSums
from sparse_pipeline.analyze.reports.correlation.rows_apart import RowsApart
from sparse_pipeline.shared.codes.sparse import SparseCodes


def dense(rows: int, n_latents: int, rate: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((rows, n_latents)) < rate, rng.exponential(1.0, (rows, n_latents)) + 0.1, 0).astype(
        np.float32
    )


def triangle(pairs: PairSums) -> tuple[np.ndarray, np.ndarray]:
    n = pairs.n_latents
    sums, counts = np.zeros((n, n)), np.zeros((n, n))
    for block in pairs.blocks():
        sums[block.first : block.stop, block.first :] = block.sums
        counts[block.first : block.stop, block.first :] = block.counts
    return np.triu(sums), np.triu(counts)


def expected(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, fires = z.astype(np.float64), (z > 0).astype(np.float64)
    return np.triu(x.T @ x), np.triu(fires.T @ fires)


@pytest.mark.parametrize(("n_latents", "rate"), [(700, 0.03), (1030, 0.002), (3, 0.5), (1, 1.0)])
def test_sums_and_counts_are_exact(n_latents: int, rate: float) -> None:
    """Both ways of adding (into a buffer, directly), several blocks, several batches, empty rows."""
    z = dense(600, n_latents, rate)
    z[5:9] = 0
    pairs = PairSums(n_latents)
    for part in np.array_split(z, 3):
        pairs.add(SparseCodes.from_dense(part))
    sums, counts = triangle(pairs)
    want_sums, want_counts = expected(z)
    np.testing.assert_allclose(sums, want_sums, rtol=1e-12)
    np.testing.assert_array_equal(counts, want_counts)


def test_flushing_often_changes_nothing() -> None:
    z = dense(400, 120, 0.1)
    often = PairSums(120, buffer_entries=50)
    for part in np.array_split(z, 40):
        often.add(SparseCodes.from_dense(part))
    np.testing.assert_allclose(triangle(often)[0], expected(z)[0], rtol=1e-12)


def test_merge_is_the_same_as_seeing_all_rows() -> None:
    z = dense(500, 90, 0.1)
    whole, a, b = PairSums(90), PairSums(90), PairSums(90)
    whole.add(SparseCodes.from_dense(z))
    a.add(SparseCodes.from_dense(z[:200]))
    b.add(SparseCodes.from_dense(z[200:]))
    a.merge(b)
    assert a.n_rows == whole.n_rows == 500
    np.testing.assert_allclose(triangle(a)[0], triangle(whole)[0], rtol=1e-13)
    np.testing.assert_array_equal(triangle(a)[1], triangle(whole)[1])


def test_a_partner_pairs_other_rows() -> None:
    z = dense(300, 80, 0.1)
    shuffle = np.random.default_rng(1).permutation(300)
    pairs = PairSums(80)
    pairs.add(SparseCodes.from_dense(z), shuffle)
    x = z.astype(np.float64)
    np.testing.assert_allclose(triangle(pairs)[0], np.triu(x.T @ x[shuffle], 1), rtol=1e-12)


def test_lookup() -> None:
    z = dense(300, 600, 0.05)
    pairs = PairSums(600)
    pairs.add(SparseCodes.from_dense(z))
    rng = np.random.default_rng(2)
    i, j = rng.integers(0, 600, (2, 200))
    sums, counts = pairs.lookup(i, j)
    x = z.astype(np.float64)
    np.testing.assert_allclose(sums, (x[:, i] * x[:, j]).sum(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(counts, ((x[:, i] > 0) & (x[:, j] > 0)).sum(axis=0))


def test_rows_at_position_0_are_kept_once_and_counted() -> None:
    z = dense(40, 600, 0.02)
    first = np.concatenate([z[:3]] * 5 + [z[3:5], np.zeros((2, 600), np.float32)])
    rows = RowsApart(600)
    rows.add(SparseCodes.from_dense(first[:9]))
    other = RowsApart(600)
    other.add(SparseCodes.from_dense(first[9:]))
    rows.merge(other)
    assert (len(rows.rows), rows.n_rows) == (6, 19)
    rest = PairSums(600)
    rest.add(SparseCodes.from_dense(z))
    sums, counts = np.zeros((600, 600)), np.zeros((600, 600))
    for block in rows.added_to(rest):
        sums[block.first : block.stop, block.first :] = block.sums
        counts[block.first : block.stop, block.first :] = block.counts
    want = expected(np.concatenate([z, first]))
    np.testing.assert_allclose(np.triu(sums), want[0], rtol=1e-12)
    np.testing.assert_array_equal(np.triu(counts), want[1])
    i, j = np.random.default_rng(3).integers(0, 600, (2, 50))
    x = first.astype(np.float64)
    np.testing.assert_allclose(rows.lookup(i, j)[0], (x[:, i] * x[:, j]).sum(axis=0), rtol=1e-12)


def test_pearson_survives_a_large_mean() -> None:
    """A constant large activation on nearly every row: the case in which float32 sums would be noise."""
    rng = np.random.default_rng(0)
    z = (1000 + rng.standard_normal((4000, 3))).astype(np.float32)
    z[:, 1] = z[:, 0] + 0.5 * rng.standard_normal(4000).astype(np.float32)
    codes = SparseCodes.from_dense(z)
    pairs = PairSums(3)
    pairs.add(codes)
    i, j = np.triu_indices(3, 1)
    r = codes.moments.pearson(i, j, pairs.lookup(i, j)[0])
    np.testing.assert_allclose(r, np.corrcoef(z.astype(np.float64).T)[i, j], atol=1e-6)


def test_counts_refuse_to_overflow() -> None:
    pairs = PairSums(2)
    pairs.n_rows = MAX_ROWS
    with pytest.raises(OverflowError, match="at most"):
        pairs.add(SparseCodes.from_dense(np.ones((1, 2), np.float32)))
