from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.penalties import StepBatch
from sparse_pipeline.train.penalties.massive_rows import MassiveRows, MassiveRowsConfig
from tests.train.penalties.conftest import minimise, step_batch


def coder_of(latents: int = 12, width: int = 5, k: int = 3) -> Coder:
    generator = torch.Generator().manual_seed(0)
    coder = build_coder(TopKConfig(latents=latents, k=k), width, width, tied=True, generator=generator).double()
    with torch.no_grad():
        coder.w_enc.normal_(generator=generator)
        coder.b_enc.normal_(generator=generator)
    return coder


def batch_of(width: int = 5, rows: int = 16) -> StepBatch:
    """Position 0 every eighth row; rows 3, 8 (a position 0) and 9 massive at the source, row 4 at the target alone."""
    u = torch.randn(rows, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    source = torch.zeros(rows, dtype=torch.bool)
    source[[3, 8, 9]] = True
    either = source.clone()
    either[4] = True
    return replace(step_batch(torch.arange(rows) % 8), u=u, t=u, massive=either, massive_input=source)


def value(config: MassiveRowsConfig, coder: Coder, batch: StepBatch) -> torch.Tensor:
    return MassiveRows(config)(batch, coder, coder.encode_normalised(batch.u))


@pytest.mark.parametrize(("keep", "margin"), [(1, 0.0), (4, 0.5), (12, 0.5)])
def test_the_formula(keep: int, margin: float) -> None:
    coder, batch = coder_of(), batch_of()
    u, w, b = (tensor.detach().numpy() for tensor in (batch.u, coder.w_enc, coder.b_enc))
    total = 0.0
    for row in (3, 9):
        a = np.sort(w @ u[row] + b)[: len(b) - keep]
        total += np.maximum(a + margin, 0).sum()
    found = value(MassiveRowsConfig(keep=keep, margin=margin), coder, batch)
    assert found.item() == pytest.approx(total / u.size, rel=1e-12)
    assert (found.item() > 0) == (keep < 12)


def test_the_gradient_is_that_of_the_formula_and_no_bias_moves() -> None:
    coder, batch, config = coder_of(), batch_of(), MassiveRowsConfig(keep=2)
    value(config, coder, batch).backward()
    expected = np.zeros(coder.w_enc.shape)
    u, w, b = (tensor.detach().numpy() for tensor in (batch.u, coder.w_enc, coder.b_enc))
    for row in (3, 9):
        a = w @ u[row] + b
        pushed = (a + config.margin > 0) & (np.argsort(np.argsort(-a)) >= 2)
        expected[pushed] += u[row] / u.size
    np.testing.assert_allclose(coder.w_enc.grad.numpy(), expected, rtol=1e-12, atol=1e-15)
    assert coder.b_enc.grad is None or not coder.b_enc.grad.any()


@pytest.mark.parametrize("massive", [None, torch.zeros(16, dtype=torch.bool)])
def test_without_massive_rows_it_is_zero(massive: torch.Tensor | None) -> None:
    coder = coder_of()
    found = value(MassiveRowsConfig(), coder, replace(batch_of(), massive_input=massive))
    found.backward()
    assert found.item() == 0


def test_at_its_minimum_only_the_latents_it_keeps_fire_on_massive_rows() -> None:
    coder, config = coder_of(), MassiveRowsConfig(keep=1, margin=0.2)
    batch = batch_of()
    with torch.no_grad():
        batch.u[[3, 9]] = torch.tensor([6.0, 0, 0, 0, 0], dtype=torch.float64) + 0.1 * batch.u[[3, 9]]
    before = coder.encode_normalised(batch.u).l0()
    minimise(coder.w_enc, lambda: value(config, coder, batch))
    after = coder.encode_normalised(batch.u).l0()
    assert before[[3, 9]].tolist() == [3, 3]
    assert after[[3, 9]].tolist() == [1, 1]
    assert (coder.centred(batch.u)[[3, 9]] @ coder.w_enc.T + coder.b_enc <= -0.2 + 1e-3).sum().item() == 2 * 11


@pytest.mark.parametrize(
    ("settings", "problem"), [({"keep": 0}, "keep must be at least 1"), ({"margin": -1.0}, "margin must not")]
)
def test_settings_that_mean_nothing(settings: dict[str, float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        MassiveRowsConfig(**settings)  # type: ignore[arg-type]
