"""Intervals of rates that may well be exactly 0, over rows, labels and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, t

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def draws(values: Doubles, rng: np.random.Generator, n: int = 1000) -> Doubles:
    """n draws [n] of the mean of numbers in [0, 1], many of them exactly 0.

    Two parts, so that the interval of all zeros is not the point 0: the share above 0 from its posterior (Jeffreys'
    Beta), and the mean of those above 0 from a bootstrap (1, the most it can be, where there is none).
    """
    positive = values[values > 0]
    share = rng.beta(len(positive) + 0.5, len(values) - len(positive) + 0.5, n)
    if not len(positive):
        return share
    picks = rng.integers(0, len(positive), (n, len(positive)))
    means: Doubles = share * positive[picks].mean(1)
    return means


def estimate(values: Doubles, rng: np.random.Generator, n: int = 1000) -> Estimate:
    """The mean of values in [0, 1] with its 95 % interval."""
    mean = float(values.mean())
    if not (values > 0).any():  # Jeffreys' interval at 0 successes begins at 0
        return Estimate(mean, 0.0, float(beta.ppf(0.975, 0.5, len(values) + 0.5)))
    low, high = np.quantile(draws(values, rng, n), [0.025, 0.975])
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def mean_estimate(groups: Sequence[Doubles], rng: np.random.Generator, n: int = 1000) -> Estimate:
    """The mean over groups (labels) of the groups' means; both the groups and the rows in them are drawn anew."""
    mean = float(np.mean([values.mean() for values in groups]))
    per_group = np.stack([draws(values, rng, n) for values in groups])
    picks = rng.integers(0, len(groups), (n, len(groups)))
    low, high = np.quantile(per_group[picks, np.arange(n)[:, None]].mean(1), [0.025, 0.975])
    if all(not (values > 0).any() for values in groups):
        low = 0.0
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def over_items(values: Sequence[float] | Doubles, rng: np.random.Generator, n: int = 1000) -> Estimate:
    """The mean of any numbers with the 95 % bootstrap interval over them; of one number, that number alone."""
    items = np.asarray(values, np.float64)
    mean = float(items.mean())
    means = items[rng.integers(0, len(items), (n, len(items)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def difference(after: Sequence[float], before: Sequence[float]) -> Estimate | None:
    """Mean of `after` less mean of `before`, with Welch's 95 % interval; None where a side has fewer than three seeds.

    Welch 1947: the sides may differ in spread; degrees of freedom by Satterthwaite.
    """
    if min(len(after), len(before)) < 3:
        return None
    value = float(np.mean(after) - np.mean(before))
    parts = np.array([np.var(side, ddof=1) / len(side) for side in (after, before)])
    if parts.sum() == 0:
        return Estimate(value, value, value)
    freedom = parts.sum() ** 2 / (parts**2 / (np.array([len(after), len(before)]) - 1)).sum()
    half = float(t.ppf(0.975, freedom) * np.sqrt(parts.sum()))
    return Estimate(value, value - half, value + half)


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """The mean over training seeds with Student's 95 % interval; None for fewer than three."""
    if len(values) < 3:
        return None
    mean = float(np.mean(values))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half)
