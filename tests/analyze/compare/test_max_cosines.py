"""Largest cosines against NumPy."""

from __future__ import annotations

import numpy as np
import torch

from sparse_pipeline.analyze.compare.similarity import max_cosines


def test_max_cosines() -> None:
    a, b = torch.randn(11, 5), torch.randn(6, 5)
    unit_a, unit_b = (m.double().numpy() / np.linalg.norm(m.double(), axis=1, keepdims=True) for m in (a, b))
    np.testing.assert_allclose(max_cosines(a, b), (unit_a @ unit_b.T).max(1))
    np.testing.assert_allclose(max_cosines(a, b, chunk=4), (unit_a @ unit_b.T).max(1))
