"""Absorption reduction efficiency, by hand."""

from __future__ import annotations

import pytest

from sparse_pipeline.analyze.sweep.efficiency import Trained, reduction_efficiency


def runs(
    absorption: list[float | None], fvu: float | None, seconds: float | None, l0: float | None = 16.0
) -> list[Trained]:
    return [Trained(seed, a, fvu, l0, seconds) for seed, a in enumerate(absorption)]


def test_efficiency() -> None:
    before = runs([0.4, 0.5, 0.6], 0.30, 100.0)
    found = reduction_efficiency(before, runs([0.2, 0.25, 0.3], 0.303, 110.0))
    assert found.status == "measured"
    assert found.mean_reduction == pytest.approx(0.5)
    assert found.reduction is not None
    assert found.fvu_cost == pytest.approx(0.01)
    assert found.per_fvu == pytest.approx(50.0)  # 50 % less for 1 % of FVU
    assert found.per_time == pytest.approx(5.0)
    free = reduction_efficiency(before, runs([0.2, 0.25, 0.3], 0.29, 90.0))
    assert (free.per_fvu, free.per_time) == (None, None)


def test_efficiency_refuses_what_does_not_compare() -> None:
    before = runs([0.4, 0.5, 0.6], 0.3, 100.0)
    assert "L0 differs" in reduction_efficiency(before, runs([0.2] * 3, 0.3, 100.0, l0=20.0)).status
    assert "not evaluable" in reduction_efficiency(before, runs([0.2, None, 0.2], 0.3, 100.0)).status
    assert "no absorption to reduce" in reduction_efficiency(runs([0.0], 0.3, 1.0), runs([0.0], 0.3, 1.0)).status
    assert "no seed" in reduction_efficiency(before, []).status
    assert "baseline's FVU is 0" in reduction_efficiency(runs([0.4], 0.0, 1.0), runs([0.2], 0.3, 1.0)).status
    assert "baseline's training time is 0" in reduction_efficiency(runs([0.4], 0.3, 0.0), runs([0.2], 0.3, 1.0)).status
    assert "FVU was not measured" in reduction_efficiency(before, runs([0.2] * 3, None, 100.0)).status
    assert "L0 was not measured" in reduction_efficiency(before, runs([0.2] * 3, 0.3, 100.0, l0=None)).status
    assert "time was not measured" in reduction_efficiency(before, runs([0.2] * 3, 0.3, None)).status
    pair = reduction_efficiency(before[:2], runs([0.2, 0.25], 0.3, 100.0))
    assert pair.reduction is None  # two seeds: a mean, no interval
    assert pair.mean_reduction == pytest.approx(0.5)
