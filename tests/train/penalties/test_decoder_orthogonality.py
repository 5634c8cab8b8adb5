from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.coders import Codes, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.penalties.decoder_orthogonality import DecoderOrthogonality, DecoderOrthogonalityConfig

PENALTY = DecoderOrthogonality(DecoderOrthogonalityConfig())
CODES = Codes(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), 1)


def value(w_dec: Tensor) -> Tensor:
    coder = build_coder(TopKConfig(latents=len(w_dec), k=1), 3, w_dec.shape[1], tied=False).double()
    coder._parameters["w_dec"] = w_dec  # type: ignore[assignment]
    return PENALTY(None, coder, CODES)  # type: ignore[arg-type]


def test_it_is_the_mean_squared_cosine_of_different_rows() -> None:
    w = torch.randn(7, 4, dtype=torch.float64)
    unit = (w / w.norm(dim=1, keepdim=True)).numpy()
    cosines = [(unit[i] @ unit[j]) ** 2 for i in range(7) for j in range(7) if i != j]
    assert value(w).item() == pytest.approx(np.mean(cosines), rel=1e-12)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(value, (torch.randn(6, 4, dtype=torch.float64, requires_grad=True),))


def test_it_is_zero_for_orthogonal_rows_and_one_for_equal_ones() -> None:
    assert value(torch.eye(5, dtype=torch.float64) * 3).item() == pytest.approx(0, abs=1e-15)
    assert value(torch.ones(5, 3, dtype=torch.float64)).item() == pytest.approx(1)
    assert value(torch.zeros(5, 3, dtype=torch.float64)).item() == 0
    assert value(torch.ones(1, 3, dtype=torch.float64)).item() == 0


def test_the_order_of_latents_does_not_matter() -> None:
    w = torch.randn(9, 4, dtype=torch.float64)
    assert value(w[torch.randperm(9)]).item() == pytest.approx(value(w).item(), rel=1e-12)


def test_minimising_it_alone_spreads_the_rows() -> None:
    w = (torch.ones(8, 8, dtype=torch.float64) + 0.1 * torch.randn(8, 8, dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.05)
    before = value(w).item()
    for _ in range(300):
        optimizer.zero_grad()
        value(w).backward()
        optimizer.step()
    assert before > 0.9
    assert value(w).item() < 1e-3
