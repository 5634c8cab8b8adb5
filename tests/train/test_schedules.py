"""Schedules against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparse_pipeline.train.config import OptimizerConfig
from sparse_pipeline.train.penalties.weights import (
    AdaptiveConfig,
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    build_schedule,
)
from sparse_pipeline.train.schedules import cosine, default_lr, linear, warmup_constant, warmup_cosine


def test_warmup_then_cosine_as_the_preset_says_it() -> None:
    """Linear 0 → 3e-4 over 200 steps, cosine to 3e-6 over the other 4,683 of 4,883."""
    rates = np.array([warmup_cosine(step, 3e-4, 200, 4883, 0.01) for step in range(1, 4884)])
    np.testing.assert_allclose(rates[:200], 3e-4 * np.arange(1, 201) / 200)
    progress = np.arange(1, 4684) / 4683
    np.testing.assert_allclose(rates[200:], 3e-6 + (3e-4 - 3e-6) * (1 + np.cos(np.pi * progress)) / 2, rtol=1e-12)
    assert rates.max() == rates[199] == 3e-4
    assert rates[-1] == pytest.approx(3e-6)


def test_without_warmup_the_first_update_is_already_on_the_cosine() -> None:
    assert warmup_cosine(1, 1.0, 0, 4, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert warmup_constant(1, 2.0, 0) == 2.0
    assert [warmup_constant(step, 2.0, 4) for step in (1, 2, 4, 9)] == [0.5, 1.0, 2.0, 2.0]


def test_a_line_to_zero_over_the_last_fifth() -> None:
    optimizer = OptimizerConfig(lr=2.0, warmup_steps=10, decay="linear")
    rates = np.array([optimizer.rate(step, 100, 64) for step in range(1, 101)])
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 5)
    np.testing.assert_allclose(rates[10:80], 2.0)
    np.testing.assert_allclose(rates[80:], 2.0 * (1 - np.arange(1, 21) / 20), atol=1e-12)
    shorter = OptimizerConfig(lr=2.0, warmup_steps=0, decay="linear", decay_steps=4, lr_final_fraction=0.5)
    assert [shorter.rate(step, 100, 64) for step in (1, 96, 98, 100)] == [2.0, 2.0, 1.5, 1.0]


def test_default_rate() -> None:
    assert default_lr(2**14) == pytest.approx(2e-4)
    assert default_lr(2**10) == pytest.approx(8e-4)


def test_lines_and_cosines_stay_within_their_ends() -> None:
    assert [linear(1.0, 3.0, p) for p in (-1, 0, 0.5, 1, 2)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert [round(cosine(1.0, 3.0, p), 12) for p in (-1, 0, 0.5, 1, 2)] == [1.0, 1.0, 2.0, 3.0, 3.0]


def test_constant_and_linear_and_cosine_weights() -> None:
    assert build_schedule(ConstantConfig()).factor(3, 10) == 1.0
    warm = build_schedule(LinearConfig(steps=1000))
    assert [warm.factor(step, 5000) for step in (0, 250, 1000, 4000)] == [0.0, 0.25, 1.0, 1.0]
    assert build_schedule(LinearConfig()).factor(5, 100) == 0.5  # a tenth of training
    anneal = build_schedule(CosineConfig(start=0.3, end=0.05))
    assert anneal.factor(0, 100) == pytest.approx(0.3)
    assert anneal.factor(50, 100) == pytest.approx(0.175)
    assert anneal.factor(100, 100) == pytest.approx(0.05)


def test_adaptive_weight_follows_the_rule_and_resumes_exactly() -> None:
    config = AdaptiveConfig(target=0.2, rate=0.5, ema=0.9, min=0.5, max=1.3)
    schedule = build_schedule(config)
    assert schedule.listens
    average, factor = None, 1.0
    values = [0.5, 0.9, 0.1, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    for count, value in enumerate(values):
        schedule.observe(value)
        average = value if average is None else 0.9 * average + 0.1 * value
        factor = min(max(factor * math.exp(0.5 * (average - 0.2)), 0.5), 1.3)
        assert schedule.factor(count + 1, 100) == pytest.approx(factor, rel=1e-12)
    again = build_schedule(config)
    again.load_state(schedule.state())
    again.observe(0.7)
    schedule.observe(0.7)
    assert again.factor(1, 1) == schedule.factor(1, 1)


def test_a_huge_value_does_not_overflow_the_weight() -> None:
    schedule = build_schedule(AdaptiveConfig(target=0.0, max=10.0))
    schedule.observe(1e30)
    assert schedule.factor(1, 1) == 10.0
