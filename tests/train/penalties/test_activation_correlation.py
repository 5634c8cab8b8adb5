from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import Flag
from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.train.data.rows import row_batches
from sparse_pipeline.train.penalties import StepBatch
from sparse_pipeline.train.penalties.activation_correlation import ActivationCorrelation, ActivationCorrelationConfig
from tests.synthetic import make_cache
from tests.train.penalties.conftest import Case, coder_with, gradcheck, minimise, step_batch


def build(threshold: float = 0.0, **settings: object) -> ActivationCorrelation:
    config = ActivationCorrelationConfig(threshold=threshold, **{"min_fired": 2, **settings})  # type: ignore[arg-type]
    return ActivationCorrelation(config)


@pytest.mark.parametrize(("threshold", "per"), [(0.0, "pair"), (0.2, "pair"), (0.1, "latent")])
def test_it_is_the_squared_excess_of_pearsons_r_over_the_rows_without_position_zero(
    case: Case, threshold: float, per: str
) -> None:
    r = np.corrcoef(case.codes().dense()[case.position > 0].numpy().T)[np.triu_indices(9, 1)]
    excess = np.square(np.maximum(np.abs(r) - threshold, 0)).sum()
    expected = excess / (36 if per == "pair" else 9)
    penalty = build(threshold, per=per)
    assert case.value(penalty).item() == pytest.approx(expected, rel=1e-10)
    assert penalty.metrics() == {"latents": 9, "max_r": pytest.approx(np.abs(r).max())}


def test_a_bos_within_a_sequence_is_left_out(tmp_path: Path) -> None:
    site = "layer_01.resid_mid"
    cache = make_cache(tmp_path / "c", n_seq=30, ctx=16, packing="apart", doc_length=(3, 20))
    kept = np.flatnonzero((cache.flags & int(Flag.PADDING)) == 0)
    (rows,) = row_batches(cache, [site], kept, len(kept))
    x = rows.acts[site].double()
    codes = Codes(x[:, :6].clamp_min(0), None, 6)
    bos = (cache.flags.reshape(-1)[kept] & int(Flag.BOS)) != 0
    assert bos.sum() > 30 + 10
    r = np.corrcoef(codes.dense()[torch.from_numpy(~bos)].numpy().T)[np.triu_indices(6, 1)]
    batch = StepBatch(x, x, rows, 1, 10, torch.Generator().manual_seed(0), cache.ctx)
    found = build()(batch, coder_with(torch.eye(6, dtype=torch.float64)), codes)
    assert found.item() == pytest.approx(np.square(r).mean(), rel=1e-10)


def test_gradcheck(case: Case) -> None:
    assert gradcheck(case, build)
    assert gradcheck(case, lambda: build(0.15, per="latent"))


def test_only_latents_that_fired_often_enough_are_compared(case: Case) -> None:
    counts = case.codes().firing_counts(case.position > 0)
    least = int(counts.sort().values[4])
    often = (counts >= least).numpy()
    r = np.corrcoef(case.codes().dense()[case.position > 0].numpy().T[often])
    expected = np.square(r[np.triu_indices(len(r), 1)]).mean()
    assert case.value(build(min_fired=least)).item() == pytest.approx(expected, rel=1e-10)


def test_a_subset_is_drawn_from_the_runs_own_generator(case: Case) -> None:
    penalty = build(latents=4)
    chosen = torch.randperm(9, generator=torch.Generator().manual_seed(2))[:4].numpy()
    r = np.corrcoef(case.codes().dense()[case.position > 0].numpy().T[chosen])
    assert case.value(penalty, seed=2).item() == pytest.approx(np.square(r[np.triu_indices(4, 1)]).mean(), rel=1e-10)
    assert penalty.metrics()["latents"] == 4


def test_position_zero_has_no_say(case: Case) -> None:
    before = case.value(build()).item()
    case.values[case.position == 0] *= 100
    assert case.value(build()).item() == before


def test_it_is_zero_for_latents_that_fire_independently() -> None:
    grid = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64).repeat(4, 1)
    codes = Codes(grid, None, 2)
    batch, coder = step_batch(torch.ones(16, dtype=torch.int64)), coder_with(torch.eye(2, dtype=torch.float64))
    assert build()(batch, coder, codes).item() == pytest.approx(0, abs=1e-15)
    assert build()(batch, coder, Codes(grid[:, [0, 0]], None, 2)).item() == pytest.approx(1)
    assert build(0.9999)(batch, coder, Codes(grid, None, 2)).item() == 0


def test_latents_that_do_not_vary_correlate_with_nothing() -> None:
    """0.1 thirteen times has a mean that is not 0.1, and the difference would be a perfect correlation."""
    z = torch.cat([torch.full((13, 2), 0.1), torch.rand(13, 1)], dim=1).requires_grad_()
    batch, coder = step_batch(torch.ones(13, dtype=torch.int64)), coder_with(torch.eye(3))
    value = build()(batch, coder, Codes(z, None, 3))
    value.backward()
    assert value.item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_minimising_it_alone_separates_a_correlated_pair() -> None:
    shared = torch.rand(64, 1, dtype=torch.float64)
    raw = (shared + 0.1 * torch.rand(64, 2, dtype=torch.float64)).requires_grad_()
    batch, coder = step_batch(torch.ones(64, dtype=torch.int64)), coder_with(torch.eye(2, dtype=torch.float64))

    def r() -> float:
        return float(np.corrcoef(raw.detach().relu().numpy().T)[0, 1])

    before = r()
    minimise(raw, lambda: build(0.3)(batch, coder, Codes(raw.relu(), None, 2)))
    assert before > 0.9
    assert r() < 0.31
