from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparse_pipeline.shared.cache import Flag
from sparse_pipeline.train.samplers import SAMPLERS, Sampler, Window, build_sampler
from sparse_pipeline.train.samplers.exclude_bos import ExcludeBosConfig


def window(epoch: int = 0, index: int = 0, seed: int = 0) -> Window:
    row = np.arange(100, 160, dtype=np.int64)
    position = (row % 10).astype(np.int32)
    flags = np.where(position == 0, int(Flag.BOS), 0).astype(np.uint8)
    flags[10] = 0  # a sequence that begins without BOS
    return Window(row, position, flags, seed, epoch, index, ctx=10, batch_size=5)


@pytest.fixture(params=SAMPLERS)
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return build_sampler(SAMPLERS[request.param].config_class(kind=request.param))


def test_every_row_comes_at_most_once_and_is_counted(sampler: Sampler) -> None:
    order = sampler.order(window())
    assert len(set(order.tolist())) == len(order) == sampler.count(window())
    assert order.min() >= 0
    assert order.max() < len(window())


def test_the_order_depends_on_seed_epoch_and_window_alone(sampler: Sampler) -> None:
    first = sampler.order(window())
    assert np.array_equal(first, sampler.order(window()))
    for other in (window(epoch=1), window(index=1), window(seed=1)):
        assert not np.array_equal(first, sampler.order(other))


def test_uniform_keeps_everything() -> None:
    order = build_sampler(SAMPLERS["uniform"].config_class(kind="uniform")).order(window())
    assert sorted(order.tolist()) == list(range(60))


@pytest.mark.parametrize(("position_zero", "kept_at_zero"), [(True, 0), (False, 1)])
def test_exclude_bos(position_zero: bool, kept_at_zero: int) -> None:
    order = build_sampler(ExcludeBosConfig(position_zero=position_zero)).order(window())
    assert (window().position[order] == 0).sum() == kept_at_zero
    assert len(order) == 54 + kept_at_zero


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_is_registered_under_its_own_name(name: str) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(SAMPLERS[name].config_class)}
    assert fields["kind"] == name
