from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.train.penalties.topk_pairs import TopkPairs, TopkPairsConfig, select, select_ahead, select_dense
from tests.second_device import DEVICE, second_device
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


@pytest.mark.parametrize("n_pairs", [5, 36])
def test_selecting_without_waiting_finds_the_same_pairs_and_gradient(case: Case, n_pairs: int) -> None:
    """Also where fewer overlap than there is room for."""
    rows = (case.position > 0) & (torch.arange(40) < 16)
    values = case.values.requires_grad_()
    codes = Codes(values, case.latents, 9)
    expected, found = select(codes, rows, n_pairs), select_ahead(codes, rows, n_pairs)
    n = len(expected.key)
    assert (n < n_pairs) == (n_pairs == 36)
    assert found.real.tolist() == [place < n for place in range(len(found.real))]
    for name in ("key", "i", "j", "overlap"):
        torch.testing.assert_close(getattr(found, name)[:n], getattr(expected, name))
    weight = torch.arange(1.0, n + 1, dtype=torch.float64)
    gradients = [torch.autograd.grad((one.overlap[:n] * weight).sum(), values)[0] for one in (expected, found)]
    assert bool((gradients[0] != 0).any())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("settings", [{}, {"on": "decoder", "threshold": "adaptive"}])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_device_gets_the_same_and_no_host_waits(share: float, settings: dict[str, object]) -> None:
    here, there = build(share=share, **settings), build(share=share, **settings)
    for seed in range(3):
        case = make_case(seed, n_rows=6)
        expected = case.value(here)
        with second_device() as second:
            coder = coder_with(case.w_dec.to(DEVICE))
            batch = step_batch(case.position.to(DEVICE))
            codes = Codes(case.values.to(DEVICE), case.latents.to(DEVICE), 9)
            second.reads.clear()
            value = there(batch, coder, codes)
            assert not second.reads
            assert value.cpu().item() == pytest.approx(expected.item(), rel=1e-12)
            assert there.metrics() == pytest.approx(here.metrics(), rel=1e-6)


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
