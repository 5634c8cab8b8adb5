from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_pipeline.train.penalties.ortsae import OrtSAE, OrtSAEConfig
from tests.train.penalties.conftest import Case, coder_with, gradcheck, minimise, step_batch


def value(w_dec: Tensor, chunk: int = 8192, seed: int = 0) -> Tensor:
    codes = None
    return OrtSAE(OrtSAEConfig(chunk=chunk))(step_batch(torch.arange(3), seed=seed), coder_with(w_dec), codes)  # type: ignore[arg-type]


def oracle(w: Tensor, chunks: list[list[int]]) -> float:
    unit = (w / w.norm(dim=1, keepdim=True)).numpy()
    largest = [max(unit[i] @ unit[j] for j in chunk if j != i) for chunk in chunks for i in chunk]
    return float(np.mean(np.square(largest)))


def test_it_is_the_mean_squared_cosine_to_the_nearest_row() -> None:
    w = torch.randn(11, 4, dtype=torch.float64)
    assert value(w).item() == pytest.approx(oracle(w, [list(range(11))]), rel=1e-12)


def test_chunks_are_dealt_from_the_runs_own_generator_and_differ_by_one_row_at_most() -> None:
    w = torch.randn(11, 4, dtype=torch.float64)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3)).tolist()
    chunks = [order[:4], order[4:8], order[8:]]
    assert value(w, chunk=4, seed=3).item() == pytest.approx(oracle(w, chunks), rel=1e-12)
    assert value(w, chunk=4, seed=4).item() != value(w, chunk=4, seed=3).item()


def test_gradcheck(case: Case) -> None:
    assert gradcheck(case, lambda: OrtSAE(OrtSAEConfig()))
    assert gradcheck(case, lambda: OrtSAE(OrtSAEConfig(chunk=3)))


def test_it_is_zero_for_orthogonal_rows_and_one_for_equal_ones() -> None:
    assert value(torch.eye(5, dtype=torch.float64) * 3).item() == pytest.approx(0, abs=1e-15)
    assert value(torch.ones(5, 3, dtype=torch.float64)).item() == pytest.approx(1)
    assert value(torch.ones(1, 3, dtype=torch.float64)).item() == 0


def test_minimising_it_alone_parts_near_neighbours() -> None:
    pairs = torch.eye(6, 8, dtype=torch.float64).repeat_interleave(2, dim=0)
    w = (pairs + 0.1 * torch.randn(12, 8, dtype=torch.float64)).requires_grad_()
    before = value(w).item()
    minimise(w, lambda: value(w))
    assert before > 0.8
    assert value(w).item() < 0.1  # 12 rows in 8 dimensions cannot all be orthogonal
