from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.train.penalties.topk_pairs import TopkPairs, TopkPairsConfig, select, select_dense
from tests.train.penalties.conftest import Case, coder_with, gradcheck, make_case, minimise, step_batch


def build(**settings: object) -> TopkPairs:
    return TopkPairs(TopkPairsConfig(**{"share": 0.25, **settings}))  # type: ignore[arg-type]


def overlaps(case: Case, rows: np.ndarray) -> np.ndarray:
    z = case.codes().dense().detach().numpy()[rows]
    unit = z / np.linalg.norm(z, axis=0)
    return (unit.T @ unit)[np.triu_indices(z.shape[1], 1)]


@pytest.mark.parametrize(("latents", "pairs"), [(2304, 2653), (4608, 10_614), (18_432, 169_860)])
def test_a_tenth_of_a_percent_of_all_pairs(latents: int, pairs: int) -> None:
    assert TopkPairsConfig().n_pairs(latents) == pairs


@pytest.mark.parametrize("with_bos", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_it_is_the_hinge_on_the_largest_overlaps(case: Case, with_bos: bool, dense: bool) -> None:
    rows = np.ones(40, bool) if with_bos else (case.position > 0).numpy()
    largest = np.sort(overlaps(case, rows))[-9:]  # a quarter of 36 pairs
    penalty = build(with_bos=with_bos, threshold=0.2)
    assert case.value(penalty, dense).item() == pytest.approx(np.square(np.maximum(largest - 0.2, 0)).mean(), rel=1e-10)
    found = penalty.metrics()
    assert found["pairs"] == 9
    assert found["max_overlap"] == pytest.approx(largest.max())
    assert found["mean_overlap"] == pytest.approx(largest.mean())


def test_on_the_decoder_the_same_pairs_pay_for_their_cosines(case: Case) -> None:
    rest = (case.position > 0).numpy()
    chosen = np.argsort(overlaps(case, rest))[-9:]
    unit = (case.w_dec / case.w_dec.norm(dim=1, keepdim=True)).numpy()
    cosines = (unit @ unit.T)[np.triu_indices(9, 1)][chosen]
    assert case.value(build(on="decoder")).item() == pytest.approx(np.square(np.maximum(cosines - 0.1, 0)).mean())


@pytest.mark.parametrize("settings", [{}, {"on": "decoder"}, {"with_bos": True}])
def test_gradcheck(case: Case, settings: dict[str, object]) -> None:
    assert gradcheck(case, lambda: build(**settings))
    assert gradcheck(case, lambda: build(**settings), dense=True)


def test_gradcheck_of_an_adaptive_threshold_which_is_a_constant_to_the_gradient(case: Case) -> None:
    def make() -> TopkPairs:
        penalty = build(threshold="adaptive", ema=1 - 1e-12)
        penalty.load_state({"threshold": torch.tensor(0.3)})
        return penalty

    assert gradcheck(case, make)


def test_pairs_that_never_fire_together_cost_nothing_and_do_not_shrink_the_mean() -> None:
    values = torch.tensor([[1.0, 0.0], [2.0, 2.0], [1.0, 0.0]], dtype=torch.float64)
    latents = torch.tensor([[0, 1], [2, 3], [1, 0]])
    batch, coder = step_batch(torch.ones(3, dtype=torch.int64)), coder_with(torch.eye(4, dtype=torch.float64))
    penalty = build(share=0.5)
    assert penalty(batch, coder, Codes(values, latents, 4)).item() == pytest.approx((1 - 0.1) ** 2 / 3)
    assert penalty.metrics()["pairs"] == 1
    assert penalty.metrics()["unique_latents"] == 2
    values[1] = 0
    assert penalty(batch, coder, Codes(values, latents, 4)).item() == 0


def test_the_adaptive_threshold_is_a_moving_average_of_the_selected_quantile() -> None:
    penalty, expected = build(threshold="adaptive", quantile=0.25, ema=0.9), None
    for seed in range(4):
        case = make_case(seed)
        case.value(penalty)
        now = np.quantile(np.sort(overlaps(case, (case.position > 0).numpy()))[-9:], 0.25)
        expected = now if expected is None else 0.9 * expected + 0.1 * now
    assert penalty.metrics()["threshold"] == pytest.approx(expected, rel=1e-5)


def test_stability_is_the_jaccard_index_of_successive_selections() -> None:
    penalty, chosen = build(), []
    for seed in (0, 0, 1):
        case = make_case(seed)
        case.value(penalty)
        chosen.append(set(np.argsort(overlaps(case, (case.position > 0).numpy()))[-9:].tolist()))
        if len(chosen) > 1:
            a, b = chosen[-2:]
            assert penalty.metrics()["stability"] == pytest.approx(len(a & b) / len(a | b))
    assert chosen[0] == chosen[1] != chosen[2]


def test_sparse_and_dense_selection_agree_where_a_padded_slot_repeats_a_latent() -> None:
    values = torch.tensor([[1.0, 0.5, 0.0], [0.3, 0.9, 0.0]], dtype=torch.float64)
    latents = torch.tensor([[0, 1, 1], [1, 2, 0]])
    codes, rows = Codes(values, latents, 3), torch.ones(2, dtype=torch.bool)
    sparse, dense = select(codes, rows, 3), select_dense(Codes(codes.dense(), None, 3), rows, 3)
    assert sparse.key.tolist() == dense.key.tolist() == [1, 5]
    assert torch.allclose(sparse.overlap, dense.overlap)


def test_minimising_it_alone_separates_the_pairs_that_fire_together() -> None:
    batch, coder = step_batch(torch.ones(32, dtype=torch.int64)), coder_with(torch.eye(4, dtype=torch.float64))
    raw = (0.5 + torch.rand(32, 4, dtype=torch.float64)).requires_grad_()

    def value() -> torch.Tensor:
        return build(share=1.0)(batch, coder, Codes(raw.relu(), None, 4))

    before = value().item()
    minimise(raw, value)
    assert before > 0.5
    assert value().item() < 0.01
