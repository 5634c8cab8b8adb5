"""Balanced accuracy of a judge's answers, with its interval, and the mean of it over latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, bootstrap

GRID = 2001
"""Points of the densities of the two rates."""


@dataclass(frozen=True)
class Score:
    """How well answers tell active windows from silent ones.

    Attributes:
        value: balanced accuracy: the mean of the share of active windows that were called active and the share of
            silent ones that were called silent; ½ by chance.
        low, high: its 95 % interval.
        active, silent: windows that were answered.
        hits, rejections: those of each that were answered right.
        unanswered: windows without an answer, excluded.
    """

    value: float
    low: float
    high: float
    active: int
    silent: int
    hits: int
    rejections: int
    unanswered: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        counts = {name: getattr(self, name) for name in ("active", "silent", "hits", "rejections", "unanswered")}
        return {**{name: round(number, 6) for name, number in numbers.items()}, **counts}


def score(truth: Sequence[bool], answers: Sequence[bool | None]) -> Score | None:
    """The score of answers; None where no active or no silent window was answered."""
    kept = [(bool(t), bool(a)) for t, a in zip(truth, answers, strict=True) if a is not None]
    active = [a for t, a in kept if t]
    silent = [not a for t, a in kept if not t]
    if not active or not silent:
        return None
    hits, rejections = sum(active), sum(silent)
    value = (hits / len(active) + rejections / len(silent)) / 2
    low, high = interval(hits=hits, active=len(active), rejections=rejections, silent=len(silent))
    return Score(
        value, min(low, value), max(high, value), len(active), len(silent), hits, rejections, len(answers) - len(kept)
    )


def interval(*, hits: int, active: int, rejections: int, silent: int) -> tuple[float, float]:
    """The central 95 % of the posterior of the balanced accuracy (Brodersen et al. 2010, ICPR, equations 5–7).

    Each rate has a uniform prior, so its posterior is Beta(right + 1, wrong + 1); their mean's density is the
    convolution of the two, taken on a grid.
    """
    x = np.linspace(0, 1, GRID)
    rates = [beta.pdf(x, right + 1, n - right + 1) for right, n in ((hits, active), (rejections, silent))]
    cumulative = np.cumsum(np.convolve(rates[0], rates[1]))  # of their sum, on 0 … 2
    cumulative /= cumulative[-1]
    low, high = np.interp([0.025, 0.975], cumulative, np.linspace(0, 1, 2 * GRID - 1))
    return float(low), float(high)


def mean(values: Sequence[float], seed: int) -> dict[str, Any] | None:
    """The mean over latents with its 95 % percentile bootstrap interval; None of nothing."""
    if not values:
        return None
    items: NDArray[np.float64] = np.asarray(values, np.float64)
    value, low, high = float(items.mean()), float(items[0]), float(items[0])
    if np.ptp(items) > 0:
        rng = np.random.default_rng(seed)
        low, high = bootstrap((items,), np.mean, n_resamples=2000, method="percentile", rng=rng).confidence_interval
    numbers = {"value": value, "low": min(low, value), "high": max(high, value)}
    return {**{name: round(float(number), 6) for name, number in numbers.items()}, "latents": len(items)}
