"""Moments of codes against NumPy over the dense matrix."""

from __future__ import annotations

import numpy as np

from sparse_pipeline.shared.codes.moments import CodeMoments


def of(z: np.ndarray) -> CodeMoments:
    row, latent = np.nonzero(z)
    return CodeMoments.of(latent, z[row, latent], *z.shape)


def sparse_codes(rows: int, latents: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.random((rows, latents)) * (rng.random((rows, latents)) < 0.2)).astype(np.float32)


def test_rows_on_which_a_latent_is_silent_count() -> None:
    z = sparse_codes(100, 20)
    found, x = of(z), z.astype(np.float64)
    assert found.rows == 100
    np.testing.assert_array_equal(found.n, (x > 0).sum(axis=0))
    np.testing.assert_allclose(found.mean, x.mean(axis=0))
    np.testing.assert_allclose(found.std, x.std(axis=0))
    np.testing.assert_allclose(found.spread, 100 * x.std(axis=0))


def test_parts_add_up_to_the_whole_and_no_rows_are_neutral() -> None:
    z = sparse_codes(90, 12)
    parts = CodeMoments.zeros(12) + of(z[:30]) + of(z[30:30]) + of(z[30:])
    for name in ("rows", "n", "sum", "sum_sq"):
        np.testing.assert_allclose(getattr(parts, name), getattr(of(z), name), rtol=1e-12)
    assert of(z[:0]).sum.dtype == np.float64
    assert not CodeMoments.zeros(3).std.any()


def test_some_latents_in_their_order() -> None:
    z = sparse_codes(50, 9)
    some = np.array([7, 0, 3])
    np.testing.assert_allclose(of(z).take(some).std, z[:, some].astype(np.float64).std(axis=0))


def test_pearson() -> None:
    z = sparse_codes(80, 6)
    x = z.astype(np.float64)
    i, j = np.triu_indices(6, 1)
    np.testing.assert_allclose(of(z).pearson(i, j, (x[:, i] * x[:, j]).sum(axis=0)), np.corrcoef(x.T)[i, j])


def test_pearson_of_a_latent_that_does_not_vary_is_nan() -> None:
    z = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 2.0]], np.float32)
    r = of(z).pearson(np.array([0, 0]), np.array([1, 2]), np.array([0.0, 2.0]))
    assert np.isnan(r).all()


def test_a_constant_does_not_vary_whatever_its_rounding_says() -> None:
    rng = np.random.default_rng(1)
    z = np.empty((999, 40), np.float32)
    z[:] = rng.random(40, np.float32) * 10
    z[:, 39] += rng.random(999, np.float32)
    found = of(z)
    assert not found.std[:39].any()
    assert found.std[39] > 0
    i, j = np.triu_indices(40, 1)
    x = z.astype(np.float64)
    assert np.isnan(found.pearson(i, j, (x[:, i] * x[:, j]).sum(axis=0))).all()
