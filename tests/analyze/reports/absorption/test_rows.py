"""Absorption of rows against a literal, row by row computation of its definition."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from sparse_pipeline.analyze.reports.absorption.rates import unit_codes
from sparse_pipeline.analyze.reports.absorption.rows import decoder_cosines, row_absorption


def literal(a: float, z: NDArray[np.float64], cos: NDArray[np.float64], main: tuple[int, ...]) -> tuple[bool, float]:
    """Both measures of one row, word for word as methods state them, with loops."""
    proj = [z[i] * cos[i] for i in range(len(z))]
    top = max(range(len(z)), key=lambda i: proj[i])
    full = all(z[i] < 1e-8 for i in main) and cos[top] >= 0.025 and a > 0 and proj[top] / a >= 0.4
    candidates = sorted(
        (proj[i] for i in range(len(z)) if i not in main and cos[i] >= 0.1 and proj[i] > 0), reverse=True
    )
    s, m = sum(candidates[:3]), sum(proj[i] for i in main)
    if a <= 0 or m >= a or s / a < 0.4:
        return full, 0.0
    if m <= 0:
        return full, 1.0
    u = min(s, a - m)
    return full, u / (u + m)


def test_rows_equal_the_literal_definition() -> None:
    rng = np.random.default_rng(0)
    n_rows, n_latents = 3000, 12
    z = np.where(rng.random((n_rows, n_latents)) < 0.35, rng.exponential(1.0, (n_rows, n_latents)), 0.0)
    z[:50] = 0  # nothing fires
    cos = rng.uniform(-0.4, 0.9, n_latents)
    cos[3] = 0.05  # counts for full absorption, not for the fraction
    main = (2, 7)
    a = z @ cos * rng.uniform(0.3, 3.0, n_rows) + 0.1 * rng.standard_normal(n_rows)
    result = row_absorption(a, sparse.csr_array(z), cos, main)
    expected = [literal(a[r], z[r], cos, main) for r in range(n_rows)]
    assert result.full.tolist() == [full for full, _ in expected]
    np.testing.assert_allclose(result.fraction, [fraction for _, fraction in expected], atol=1e-12)
    assert 0.02 < result.full.mean() < 0.98
    assert ((result.fraction > 0) & (result.fraction < 1)).sum() > 100
    silent = ~(z[:, main] > 1e-8).any(1)
    assert np.array_equal(result.main_silent, silent)


@pytest.mark.parametrize(
    ("z", "a", "full", "fraction"),
    [
        ([0.0, 1.0, 0.0], 0.8, True, 1.0),  # the absorber alone: cos 0.8, so it carries all of a
        ([1.0, 0.0, 0.0], 1.0, False, 0.0),  # the main latent alone
        ([0.5, 0.6, 0.0], 1.0, False, 0.48 / 0.98),  # shared: u = min(0.48, 0.5)
        ([0.9, 0.9, 0.0], 1.0, False, 0.0 + 0.1 / 1.0),  # u = min(0.72, 0.1)
        ([1.2, 0.9, 0.0], 1.0, False, 0.0),  # main latents already carry all
        ([0.0, 0.4, 0.0], 1.0, False, 0.0),  # too little of a: 0.32 < 0.4
        ([0.0, 0.0, 9.0], 0.4, True, 0.0),  # cos 0.05: enough for full, too little for the fraction
        ([0.0, 1.0, 0.0], -0.5, False, 0.0),  # the row does not lie on the probe's side
        ([0.0, 0.0, 0.0], 1.0, False, 0.0),  # nothing fires
    ],
)
def test_rows_by_hand(z: list[float], a: float, full: bool, fraction: float) -> None:
    result = row_absorption(np.array([a]), sparse.csr_array(np.array([z])), np.array([1.0, 0.8, 0.05]), (0,))
    assert bool(result.full[0]) is full
    assert result.fraction[0] == pytest.approx(fraction)


def test_cosines_and_units() -> None:
    w_dec = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    assert decoder_cosines(w_dec, np.array([[0.0, 5.0]]))[0].tolist() == pytest.approx([0.8, 0.0, -1.0])
    codes = unit_codes(sparse.csr_array(np.array([[1.0, 0.0, 2.0]])), 3.0 * w_dec)
    assert codes.toarray().tolist() == [[15.0, 0.0, 12.0]]
