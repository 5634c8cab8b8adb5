"""What holds of every penalty, whatever it is."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from sparse_pipeline.train.penalties import PENALTIES, Penalty, build_penalty
from sparse_pipeline.train.penalties.weights import ConstantConfig
from tests.train.penalties.conftest import Case, step_batch

NAMES = sorted(PENALTIES)


SMALL = {"activation_correlation": {"min_fired": 2}, "self_contrastive": {"dropout": 0.0}}
"""What a case of nine latents needs; and dropout, drawn slot by slot, would not know a permutation."""


def build(name: str) -> Penalty:
    settings = SMALL.get(name, {})
    return build_penalty(PENALTIES[name].config_class(**settings))  # type: ignore[call-arg]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_registered_under_its_own_name_with_a_weight_and_a_schedule(name: str) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(PENALTIES[name].config_class)}
    assert fields["kind"] == name
    config = build(name).config
    assert config.weight > 0
    assert config.schedule == ConstantConfig()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dense", [False, True])
def test_the_order_of_latents_does_not_matter(name: str, dense: bool, case: Case) -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    expected = case.value(build(name), dense)
    assert case.permuted(order).value(build(name), dense).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_dense_codes_give_what_sparse_ones_give(name: str, case: Case) -> None:
    assert case.value(build(name), True).item() == pytest.approx(case.value(build(name), False).item(), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_active_is_no_error_and_has_a_finite_gradient(name: str, case: Case) -> None:
    case.values = torch.zeros_like(case.values).requires_grad_()
    case.w_dec.requires_grad_()
    value = case.value(build(name))
    value.backward()
    assert math.isfinite(value.item())
    assert case.w_dec.grad is None or bool(case.w_dec.grad.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_its_further_numbers_are_finite(name: str, case: Case) -> None:
    penalty = build(name)
    assert penalty.metrics() == {} or all(math.isfinite(number) for number in penalty.metrics().values())
    for seed in range(3):
        case.value(penalty, seed=seed)
    assert all(math.isfinite(number) for number in penalty.metrics().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_penalty_with_its_state_back_goes_on_the_same(name: str, case: Case) -> None:
    first, second = build(name), build(name)
    case.value(first)
    second.load_state(first.state())
    values = [case.value(penalty, step=2, seed=1).item() for penalty in (first, second)]
    assert values[0] == values[1]
    assert first.metrics() == second.metrics()


def test_rows_without_position_zero() -> None:
    assert step_batch(torch.tensor([0, 1, 7, 0])).rest.tolist() == [False, True, True, False]
