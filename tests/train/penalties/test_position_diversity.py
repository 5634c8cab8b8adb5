from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.shared.codes.positions import position_bins
from sparse_pipeline.train.penalties.position_diversity import PositionDiversity, PositionDiversityConfig
from tests.train.penalties.conftest import Case, coder_with, gradcheck, minimise, step_batch


def build(bins: int = 3, bos_share: float = 0.2) -> PositionDiversity:
    return PositionDiversity(PositionDiversityConfig(bins=bins, bos_share=bos_share))


def value(z: Tensor, position: Tensor, penalty: PositionDiversity, ctx: int = 8) -> Tensor:
    coder = coder_with(torch.eye(z.shape[1], dtype=torch.float64))
    return penalty(step_batch(position, ctx=ctx), coder, Codes(z, None, z.shape[1]))


def oracle(z: np.ndarray, bins: np.ndarray, bos_share: float) -> float:
    used = np.unique(bins)
    terms = []
    for column in z.T:
        if column.sum() > 0:
            means = np.array([column[bins == b].mean() for b in used])
            p = means / means.sum()
            entropy = -sum(q * np.log(q) for q in p if q > 0)
            terms.append(1 - entropy / np.log(len(used)) + max(column[bins == 0].sum() / column.sum() - bos_share, 0))
    return float(np.mean(terms))


def test_bins_are_equal_and_position_zero_is_its_own() -> None:
    assert position_bins(torch.arange(11), 11, 10).tolist() == list(range(11))
    assert position_bins(torch.arange(64), 64, 10).bincount().tolist() == [1, 7, 6, 6, 7, 6, 6, 7, 6, 6, 6]
    assert position_bins(torch.arange(4), 4, 10).tolist() == [0, 1, 4, 7]
    assert position_bins(torch.zeros(2, dtype=torch.int32), 1, 10).tolist() == [0, 0]


@pytest.mark.parametrize("dense", [False, True])
def test_it_is_the_mean_lack_of_entropy_and_the_excess_at_position_zero(case: Case, dense: bool) -> None:
    bins = position_bins(case.position, 8, 3).numpy()
    penalty = build(bos_share=0.05)
    expected = oracle(case.codes().dense().numpy(), bins, 0.05)
    assert case.value(penalty, dense).item() == pytest.approx(expected, rel=1e-12)
    assert sum(penalty.metrics().values()) == pytest.approx(expected)


def test_gradcheck(case: Case) -> None:
    assert gradcheck(case, lambda: build(bos_share=0.05))
    assert gradcheck(case, lambda: build(bos_share=0.05), dense=True)


def test_it_is_zero_for_latents_that_ignore_position() -> None:
    position = torch.arange(8).repeat(5)
    assert value(torch.ones(40, 3, dtype=torch.float64), position, build()).item() == pytest.approx(0, abs=1e-12)
    # … however few rows a bin has: here position 0 comes once
    rare = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(1, 8).repeat(6)])
    assert value(torch.ones(43, 2, dtype=torch.float64), rare, build()).item() == pytest.approx(0, abs=1e-12)


def test_a_latent_locked_to_position_zero_pays_most() -> None:
    position = torch.arange(8).repeat(5)
    locked = (position == 0).to(torch.float64).unsqueeze(1)
    assert value(locked, position, build()).item() == pytest.approx(1 + 0.8)


def test_one_bin_says_nothing() -> None:
    z = torch.rand(6, 2, dtype=torch.float64)
    assert value(z, torch.full((6,), 3), build()).item() == 0
    assert value(z, torch.zeros(6, dtype=torch.int64), build()).item() == pytest.approx(0.8)


def test_minimising_it_alone_spreads_a_latent_locked_to_position_zero() -> None:
    position = torch.arange(8).repeat(5)
    z = (0.05 + 5.0 * (position == 0)).to(torch.float64).unsqueeze(1).requires_grad_()

    def share() -> float:
        positive = z.detach().relu()
        return float(positive[position == 0].sum() / positive.sum())

    before = share()
    minimise(z, lambda: value(z.relu(), position, build()), steps=400)
    assert before > 0.9
    assert share() <= 0.2
