"""Intervals against coverage, closed forms and tables."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_pipeline.analyze.probes.intervals import difference, estimate, mean_estimate, over_items, over_seeds


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        groups = [np.where(rng.random(60) < 0.2, rng.uniform(0.4, 1.0, 60), 0.0) for _ in range(8)]
        found = mean_estimate(groups, rng, 300)
        covered += found.low <= 0.2 * 0.7 <= found.high
    assert covered >= 180


def test_interval_of_nothing_observed() -> None:
    rng = np.random.default_rng(0)
    none = estimate(np.zeros(50), rng)
    assert (none.value, none.low) == (0.0, 0.0)
    assert 0.03 < none.high < 0.06  # about 2.5 in 50 by Jeffreys
    assert mean_estimate([np.zeros(50)] * 3, rng).high > 0.005
    assert over_items([2.0], rng).to_dict() == {"value": 2.0, "low": 2.0, "high": 2.0}


def test_interval_over_seeds() -> None:
    assert over_seeds([0.1, 0.2]) is None
    found = over_seeds([1.0, 2.0, 3.0])
    assert found is not None
    assert found.value == pytest.approx(2.0)
    assert found.high - found.value == pytest.approx(4.302652729911275 / np.sqrt(3))  # t(0.975; 2)
    assert over_seeds([7.0] * 3).to_dict() == {"value": 7.0, "low": 7.0, "high": 7.0}  # type: ignore[union-attr]


def test_difference_over_seeds_is_welchs() -> None:
    """By hand: a variance of 1 and one of 0 leave 2 degrees of freedom."""
    assert difference([1.0, 2.0], [1.0, 2.0, 3.0]) is None
    found = difference([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    assert found is not None
    assert found.value == pytest.approx(-3.0)
    assert found.high - found.value == pytest.approx(4.302652729911275 / np.sqrt(3))  # t(0.975; 2)
    assert found.value - found.low == pytest.approx(4.302652729911275 / np.sqrt(3))
    constant = difference([1.0] * 3, [5.0] * 3)
    assert constant is not None
    assert constant.to_dict() == {"value": -4.0, "low": -4.0, "high": -4.0}


def test_bootstrap_over_items_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = over_items(rng.normal(1.0, 2.0, 40), rng, 300)
        assert found.low <= found.value <= found.high
        covered += found.low <= 1.0 <= found.high
    assert covered >= 180
