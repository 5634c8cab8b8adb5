from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.train.penalties.tracked_pairs import TrackedPairs, TrackedPairsConfig
from tests.train.penalties.conftest import Case, coder_with, make_case, minimise, step_batch


def build(**settings: object) -> TrackedPairs:
    small = {
        "every": 1,
        "threshold": 0.05,
        "margin": 0.0,
        "period": 1,
        "window": 1,
        "memory": 1,
        "start": 1,
        "min_fired": 2,
        "min_both": 1,
    }
    return TrackedPairs(TrackedPairsConfig(**{**small, **settings}))  # type: ignore[arg-type]


def hinge(values: torch.Tensor, case: Case, threshold: float) -> torch.Tensor:
    """The closed form: (1/F) Σ relu(|r| − τ)² over the pairs that fire together, straight from Pearson's formula."""
    z = Codes(values, case.latents, 9).dense()[case.position > 0]
    both = (z > 0).double().T @ (z > 0).double()
    z = z - z.mean(dim=0)
    z = z / z.square().sum(dim=0).sqrt()
    r = (z.T @ z).triu(1)[(both > 0).triu(1)]
    return (r.abs() - threshold).relu().square().sum() / 9


def test_value_and_gradient_are_the_closed_forms_where_the_batch_is_the_window(case: Case) -> None:
    penalty = build()
    case.value(penalty, step=1)  # nominated from this batch …
    case.values.requires_grad_()
    value = case.value(penalty, step=2)  # … and applied to the same
    (found,) = torch.autograd.grad(value, case.values)
    exact = hinge(case.values, case, 0.05)
    (expected,) = torch.autograd.grad(exact, case.values)
    active = case.values.detach() > 0
    assert value.item() == pytest.approx(exact.item(), rel=1e-9)
    torch.testing.assert_close(found[active], expected[active], rtol=1e-9, atol=1e-12)
    assert bool((expected[active] != 0).any())


def test_pushing_the_weaker_latent_alone_is_the_closed_form_with_the_other_held_constant(case: Case) -> None:
    penalty = build(push="weaker")
    case.value(penalty, step=1)
    case.values.requires_grad_()
    (found,) = torch.autograd.grad(case.value(penalty, step=2), case.values)
    z = Codes(case.values, case.latents, 9).dense()[case.position > 0]
    energy = z.detach().square().sum(0)
    total = case.values.sum() * 0
    for i in range(9):
        for j in range(i + 1, 9):
            if not bool(((z[:, i] > 0) & (z[:, j] > 0)).any()):
                continue
            weak, strong = (i, j) if energy[i] < energy[j] else (j, i)
            pair = torch.stack([z[:, weak], z[:, strong].detach()])
            total = total + (torch.corrcoef(pair)[0, 1].abs() - 0.05).relu().square() / 9
    (expected,) = torch.autograd.grad(total, case.values)
    active = case.values.detach() > 0
    torch.testing.assert_close(found[active], expected[active], rtol=1e-9, atol=1e-12)
    (other,) = torch.autograd.grad(hinge(case.values, case, 0.05), case.values)
    assert not torch.allclose(other[active], expected[active])


@pytest.mark.parametrize(("every", "memory"), [(1, 3), (2, 3), (1, 2), (2, 6)])
def test_r_is_that_of_the_window_and_of_the_batches_since_the_latest_weighing_most(every: int, memory: int) -> None:
    penalty = build(period=100, window=3, memory=memory, start=100, threshold=0.1, every=every)
    steps = [100 - 2 * every, 100 - every, 100, 100 + every, 100 + 2 * every]
    cases = [make_case(step) for step in steps]
    cases[-1].values.requires_grad_()
    *_, value = [case.value(penalty, step=step) for case, step in zip(cases, steps, strict=True)]
    (found,) = torch.autograd.grad(value, cases[-1].values)

    # the window's three batches weigh as much as `memory`; each batch since then makes what lies behind it weigh less
    kept_of_it = 1 - 1 / memory
    weights = [*[kept_of_it**2 * memory / 3] * 3, kept_of_it, 1]
    kept = [case.position > 0 for case in cases]
    w = torch.cat([torch.full((int(k.sum()),), x, dtype=torch.float64) for k, x in zip(kept, weights, strict=True)])
    z = torch.cat([case.codes().dense()[k] for case, k in zip(cases, kept, strict=True)])
    first = np.abs(np.corrcoef(z[: len(w) * 3 // 5].detach().numpy().T))
    tracked = torch.from_numpy((first > 0.1) & np.triu(np.ones((9, 9), bool), 1))
    z = (z - (w[:, None] * z).sum(0) / w.sum()) * w.sqrt()[:, None]
    z = z / z.square().sum(0).sqrt()
    exact = ((z.T @ z)[tracked].abs() - 0.1).relu().square().sum() / 9
    # each row's gradient is that of a batch as large as what r is taken over
    (expected,) = torch.autograd.grad(exact * (w.sum() / kept[-1].sum()), cases[-1].values)
    active = cases[-1].values.detach() > 0
    # the window is read in float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    assert value.item() > 0
    torch.testing.assert_close(found[active], expected[active], rtol=1e-6, atol=1e-9)


def test_a_window_that_does_not_fit_between_nominations_is_refused() -> None:
    with pytest.raises(ValueError, match="window: 30 batches, every 4 steps, do not fit between nominations 100 steps"):
        TrackedPairsConfig(every=4)


def test_nothing_is_punished_before_the_first_nomination_or_without_a_pair(case: Case) -> None:
    penalty = build(start=3)
    assert [case.value(penalty, step=step).item() for step in (1, 2, 3)] == [0, 0, 0]
    assert case.value(penalty, step=4).item() > 0
    high = build(threshold=0.999)
    assert [case.value(high, step=step).item() for step in (1, 2)] == [0, 0]
    assert high.metrics() == {"pairs": 0, "unique_latents": 0}


def test_pairs_come_from_the_window_right_before_a_nomination() -> None:
    penalty = build(period=4, window=2, start=4, threshold=0.2)
    for step in range(1, 6):
        make_case(step).value(penalty, step=step)
    seen = [make_case(step) for step in (3, 4)]
    z = np.concatenate([c.codes().dense().numpy()[(c.position > 0).numpy()] for c in seen])
    r = np.abs(np.corrcoef(z.T))[np.triu_indices(9, 1)]
    assert penalty.metrics()["pairs"] == (r > 0.2).sum() > 0


def test_position_zero_and_the_order_of_latents_have_no_say(case: Case) -> None:
    def value(shown: Case) -> float:
        penalty = build()
        shown.value(penalty, step=1)
        return shown.value(penalty, step=2).item()

    before = value(case)
    assert value(case.permuted(torch.randperm(9))) == pytest.approx(before, rel=1e-9)
    case.values[case.position == 0] *= 100
    assert value(case) == before


def test_a_penalty_with_its_state_back_goes_on_the_same_in_the_middle_of_a_window() -> None:
    settings = {"period": 4, "window": 3, "start": 4, "threshold": 0.1}
    first = build(**settings)
    for step in range(1, 8):
        make_case(step).value(first, step=step)
    second = build(**settings)
    second.load_state(first.state())
    for step in range(8, 14):
        assert make_case(step).value(first, step=step).item() == make_case(step).value(second, step=step).item()
        assert first.metrics() == second.metrics()


def test_minimising_it_alone_separates_a_correlated_pair() -> None:
    shared = torch.rand(64, 1, dtype=torch.float64)
    raw = (0.5 + shared + 0.1 * torch.rand(64, 2, dtype=torch.float64)).requires_grad_()
    coder, penalty, step = coder_with(torch.eye(2, dtype=torch.float64)), build(threshold=0.3), 0

    def value() -> torch.Tensor:
        nonlocal step
        step += 1
        batch = step_batch(torch.ones(64, dtype=torch.int64), step=step)
        return penalty(batch, coder, Codes(raw.relu(), None, 2)) + 0 * raw.sum()

    before = np.corrcoef(raw.detach().numpy().T)[0, 1]
    minimise(raw, value, lr=0.01)
    assert before > 0.9
    assert np.corrcoef(raw.detach().relu().numpy().T)[0, 1] < 0.4
