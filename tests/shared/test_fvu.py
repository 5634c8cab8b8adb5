"""FVU against its formula."""

from __future__ import annotations

import pytest
import torch

from sparse_pipeline.shared.fvu import FVU


def fvu(y: torch.Tensor, y_hat: torch.Tensor, mean: torch.Tensor) -> float | None:
    meter = FVU(mean)
    meter.update(y, y_hat)
    return meter.value


def test_fvu_in_batches_equals_the_formula_in_float64() -> None:
    g = torch.Generator().manual_seed(0)
    y = (torch.randn(300, 7, generator=g) * 5 + 100).bfloat16()
    y_hat = y.float() + torch.randn(300, 7, generator=g)
    meter = FVU(y.double().mean(0))
    for part in range(0, 300, 64):
        meter.update(y[part : part + 64], y_hat[part : part + 64])
    exact, guess = y.double().numpy(), y_hat.double().numpy()
    expected = ((exact - guess) ** 2).sum() / ((exact - exact.mean(0)) ** 2).sum()
    assert meter.value == pytest.approx(expected, rel=1e-12)
    assert meter.rows == 300


def test_fvu_is_the_same_bits_for_any_number_of_threads() -> None:
    y, y_hat = torch.randn(20, 4096, 48), torch.randn(20, 4096, 48)
    threads = torch.get_num_threads()
    figures = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            figures.append([fvu(*rows, torch.zeros(48)) for rows in zip(y, y_hat, strict=True)])
    finally:
        torch.set_num_threads(threads)
    assert figures[0] == figures[1] == figures[2]


def test_the_mean_itself_scores_one_and_nothing_scores_none() -> None:
    y = torch.randn(50, 3, dtype=torch.float64)
    assert fvu(y, y.mean(0).expand_as(y), y.mean(0)) == pytest.approx(1)
    assert fvu(y, y, y.mean(0)) == 0
    assert FVU(torch.zeros(3)).value is None
