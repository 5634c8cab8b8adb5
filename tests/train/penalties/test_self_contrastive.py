from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.train.penalties.self_contrastive import SelfContrastive, SelfContrastiveConfig, nominate
from tests.train.penalties.conftest import Case, coder_with, gradcheck, minimise, step_batch


def build(**settings: object) -> SelfContrastive:
    return SelfContrastive(SelfContrastiveConfig(**settings))  # type: ignore[arg-type]


def orthogonality(w: torch.Tensor, threshold: float) -> float:
    unit = (w / w.norm(dim=1, keepdim=True)).detach().numpy()
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return float(np.square(np.maximum(cosines - threshold, 0)).sum() / len(unit))


EXACT = {"projection": None, "contrastive_weight": 0.0}


def test_the_exact_form_is_the_hinge_over_all_pairs_of_latents_that_fired(case: Case) -> None:
    penalty = build(**EXACT)
    threshold = 0.05 + 0.25 * 0.5 * (1 + math.cos(math.pi * 3 / 10))
    assert case.value(penalty, step=3).item() == pytest.approx(orthogonality(case.w_dec, threshold), rel=1e-10)
    assert penalty.metrics()["threshold"] == pytest.approx(threshold)
    case.values[case.latents == 4] = 0
    others = case.w_dec[torch.arange(9) != 4]
    assert case.value(penalty, step=3).item() == pytest.approx(orthogonality(others, threshold), rel=1e-10)


def test_a_wide_projection_nominates_every_pair_and_rescoring_makes_it_exact(case: Case) -> None:
    settings = {"contrastive_weight": 0.0, "projection": 4000, "slack": 0.2}
    exact = case.value(build(**EXACT)).item()
    assert case.value(build(**settings)).item() == pytest.approx(exact, rel=1e-10)
    unscored = case.value(build(**settings, rescore=False)).item()
    assert unscored != pytest.approx(exact, rel=1e-6)
    assert unscored == pytest.approx(exact, rel=0.2)


def test_a_projected_cosine_is_off_by_one_over_the_root_of_its_width() -> None:
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(200, 400, generator=g), dim=1)
    for width in (64, 128):
        projected = rows @ torch.randn(400, width, generator=g) / width**0.5
        unit = torch.nn.functional.normalize(projected, dim=1)
        error = (unit @ unit.T - rows @ rows.T)[tuple(torch.triu_indices(200, 200, 1))]
        assert float(error.std()) == pytest.approx(width**-0.5, rel=0.05)


def test_at_most_so_many_pairs_are_nominated_the_most_similar_ones() -> None:
    rows = torch.nn.functional.normalize(torch.randn(3000, 16, dtype=torch.float64), dim=1)
    cosines = (rows @ rows.T)[tuple(torch.triu_indices(3000, 3000, 1))]
    i, j, score = nominate(rows, 0.5, 500)
    assert torch.allclose(score.sort().values, cosines.sort().values[-500:])
    assert bool((i < j).all())
    assert torch.allclose(torch.linalg.vecdot(rows[i], rows[j]), score)
    assert len(nominate(rows, 0.5, 10**7)[0]) == int((cosines > 0.5).sum())


@pytest.mark.parametrize("settings", [EXACT, {"projection": 16, "contrastive_weight": 0.0}, {"contrastive_warmup": 2}])
def test_gradcheck(case: Case, settings: dict[str, object]) -> None:
    assert gradcheck(case, lambda: build(**settings))


def test_the_contrastive_term_warms_up_and_is_infonce_in_both_directions(case: Case) -> None:
    settings = {"projection": None, "contrastive_warmup": 4, "dropout": 0.3}
    penalty = build(**settings)
    g = torch.Generator().manual_seed(0)
    z = case.codes()
    views = []
    for _ in range(2):
        kept = torch.rand(z.values.shape, generator=g) >= 0.3
        y = Codes(z.values * kept, z.latents, 9).dense().numpy() @ case.w_dec.numpy()
        views.append(y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12))
    logits = views[0] @ views[1].T / 0.1
    both = [np.log(np.exp(m).sum(1)) - np.diag(m) for m in (logits, logits.T)]
    value = case.value(penalty, step=1).item()
    found = penalty.metrics()
    assert found["contrastive_weight"] == pytest.approx(0.3 / 4)
    assert found["contrastive"] == pytest.approx(np.mean(both), rel=1e-10)
    assert value == pytest.approx(found["orthogonality"] + 0.3 / 4 * np.mean(both))
    case.value(penalty, step=9)
    assert penalty.metrics()["contrastive_weight"] == pytest.approx(0.3)


def test_it_is_zero_for_orthogonal_rows() -> None:
    codes = Codes(torch.ones(3, 5, dtype=torch.float64), None, 5)
    batch, coder = step_batch(torch.arange(3)), coder_with(torch.eye(5, dtype=torch.float64))
    assert build(**EXACT)(batch, coder, codes).item() == 0
    assert build(contrastive_weight=0.0)(batch, coder, codes).item() == 0


def test_minimising_it_alone_parts_similar_latents() -> None:
    w = (torch.ones(6, 8, dtype=torch.float64) + 0.2 * torch.randn(6, 8, dtype=torch.float64)).requires_grad_()
    codes, batch = Codes(torch.ones(3, 6, dtype=torch.float64), None, 6), step_batch(torch.arange(3), step=10)
    penalty = build(contrastive_weight=0.0, projection=64, slack=0.2)
    before = orthogonality(w, 0.05)
    minimise(w, lambda: penalty(batch, coder_with(w), codes))
    assert before > 1
    assert orthogonality(w, 0.05) < 1e-3


@pytest.mark.parametrize("max_pairs", [65_536, 3])
def test_recall_and_precision_of_the_nominations(case: Case, max_pairs: int) -> None:
    penalty = build(contrastive_weight=0.0, projection=6, threshold_start=0.1, threshold_end=0.1, max_pairs=max_pairs)
    case.value(penalty, step=3)
    unit = torch.nn.functional.normalize(case.w_dec, dim=1).detach()
    assert penalty._nominated is not None
    rows, i, j, _ = penalty._nominated
    assert torch.equal(rows, unit), "all of them fire"
    cosines = (unit @ unit.T).numpy()
    true = {(a, b) for a, b in zip(*np.triu_indices(len(unit), 1), strict=True) if cosines[a, b] > 0.1}
    nominated = set(zip(i.tolist(), j.tolist(), strict=True))
    measured = penalty.metrics()
    assert measured["true_pairs"] == len(true) > 3
    assert measured["recall"] == pytest.approx(len(true & nominated) / len(true))
    assert measured["precision"] == pytest.approx(len(true & nominated) / len(nominated))
