"""95 % intervals of means: over rows, over labels, over seeds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, bootstrap, sem, t, ttest_ind

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}


def draws(values: Doubles, rng: np.random.Generator, n: int = 1000) -> Doubles:
    """n draws [n] of the mean of numbers in [0, 1], many of them exactly 0.

    A plain bootstrap of all zeros would give the interval [0, 0], as if a rate of 0 were certain. So the mean is drawn
    in two parts: the share above 0 from its posterior (Jeffreys' Beta), times the bootstrapped mean of the values above
    0 (1, the most it can be, where none is). `scipy.stats.bootstrap` has no such model, so the resampling is done here.

    Args:
        values: [m] in [0, 1].
        rng: of the draws.
        n: number of draws.
    """
    positive = values[values > 0]
    share = rng.beta(len(positive) + 0.5, len(values) - len(positive) + 0.5, n)
    if not len(positive):
        return share
    picks = rng.integers(0, len(positive), (n, len(positive)))
    means: Doubles = share * positive[picks].mean(1)
    return means


def estimate(values: Doubles, rng: np.random.Generator, n: int = 1000) -> Estimate:
    """The mean of values [m] in [0, 1] with its 95 % interval, from n :func:`draws`."""
    mean = float(values.mean())
    if not (values > 0).any():  # Jeffreys' interval at 0 successes begins at 0
        return Estimate(mean, 0.0, float(beta.ppf(0.975, 0.5, len(values) + 0.5)))
    low, high = np.quantile(draws(values, rng, n), [0.025, 0.975])
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def mean_estimate(groups: Sequence[Doubles], rng: np.random.Generator, n: int = 1000) -> Estimate:
    """The mean over groups (labels) of the groups' means, with its 95 % interval.

    Two levels are resampled, the rows in each group (:func:`draws`) and the groups; `scipy.stats.bootstrap` resamples
    one.
    """
    mean = float(np.mean([values.mean() for values in groups]))
    per_group = np.stack([draws(values, rng, n) for values in groups])
    picks = rng.integers(0, len(groups), (n, len(groups)))
    low, high = np.quantile(per_group[picks, np.arange(n)[:, None]].mean(1), [0.025, 0.975])
    if all(not (values > 0).any() for values in groups):
        low = 0.0
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def over_items(values: Sequence[float] | Doubles, rng: np.random.Generator, n: int = 1000) -> Estimate:
    """The mean of any numbers with its 95 % percentile bootstrap interval; of one number, that number for all three."""
    items = np.asarray(values, np.float64)
    mean = float(items.mean())
    if len(items) == 1:
        return Estimate(mean, mean, mean)
    low, high = bootstrap((items,), np.mean, n_resamples=n, method="percentile", rng=rng).confidence_interval
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def difference(after: Sequence[float], before: Sequence[float]) -> Estimate | None:
    """Mean of `after` less mean of `before`, with Welch's 95 % interval; None where a side has fewer than three seeds.

    Welch 1947: the two sides may have different variances.
    """
    if min(len(after), len(before)) < 3:
        return None
    value = float(np.mean(after) - np.mean(before))
    if np.var(after) + np.var(before) == 0:
        return Estimate(value, value, value)
    with warnings.catch_warnings():
        # SciPy warns of lost precision where one side is constant: its variance of 0 is exact.
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    return Estimate(value, float(low), float(high))


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """The mean over training seeds with Student's 95 % interval; None for fewer than three."""
    if len(values) < 3:
        return None
    mean, error = float(np.mean(values)), float(sem(values))
    if error == 0:
        return Estimate(mean, mean, mean)
    low, high = t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return Estimate(mean, float(low), float(high))
