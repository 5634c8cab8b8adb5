from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.coders import Codes

VALUES = torch.tensor([[2.0, 0.0, 1.0], [0.5, 3.0, 0.0]], dtype=torch.float64)
LATENTS = torch.tensor([[4, 0, 1], [1, 5, 5]])  # the last slot of row 1 is padding that repeats latent 5
MATRIX = np.array([[0, 1.0, 0, 0, 2.0, 0], [0, 0.5, 0, 0, 0, 3.0]])


def sparse() -> Codes:
    return Codes(VALUES.clone().requires_grad_(), LATENTS, 6)


def dense() -> Codes:
    return Codes(torch.tensor(MATRIX).requires_grad_(), None, 6)


@pytest.fixture(params=[sparse, dense], ids=["sparse", "dense"])
def codes(request: pytest.FixtureRequest) -> Codes:
    made: Codes = request.param()
    return made


def test_dense(codes: Codes) -> None:
    np.testing.assert_array_equal(codes.dense().detach(), MATRIX)


def test_columns(codes: Codes) -> None:
    np.testing.assert_array_equal(codes.columns(torch.tensor([5, 2, 1])).detach(), MATRIX[:, [5, 2, 1]])


def test_decode(codes: Codes) -> None:
    w = torch.arange(12, dtype=torch.float64).view(6, 2)
    np.testing.assert_allclose(codes.decode(w).detach(), MATRIX @ w.numpy())


def test_counts(codes: Codes) -> None:
    assert codes.l0().tolist() == [2, 2]
    assert codes.firing_counts().tolist() == [0, 2, 0, 0, 1, 1]
    assert codes.firing_counts(torch.tensor([0.5, 2.0])).tolist() == [0, 2.5, 0, 0, 0.5, 2.0]
    assert codes.fired().tolist() == [False, True, False, False, True, True]


def test_entries(codes: Codes) -> None:
    row, latent, value = codes.entries()
    again = np.zeros_like(MATRIX)
    again[row, latent] = value.detach()
    np.testing.assert_array_equal(again, MATRIX)
    assert row.tolist() == sorted(row.tolist())


def test_values_are_differentiable_through_every_view() -> None:
    for view in (lambda c: c.dense(), lambda c: c.columns(torch.tensor([1, 4]))):
        values = VALUES.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda v, view=view: view(Codes(v, LATENTS, 6)), (values,))


def test_detach_cuts_the_graph(codes: Codes) -> None:
    assert not codes.detach().dense().requires_grad
