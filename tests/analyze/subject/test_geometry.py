"""Cosines of decoder rows against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_pipeline.analyze.subject.geometry import Geometry, random_geometry


def test_geometry_of_all_pairs() -> None:
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
    found = Geometry.of(torch.ones(1, 4))
    assert (found.near.shape, found.n_close, found.histogram.sum()) == ((1, 1), 0, 0)
