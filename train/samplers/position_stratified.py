"""Position-stratified: few rows of position 0, never more than a cap in any batch, and the rest by position bins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ...shared.codes.positions import position_bins
from ...shared.hashing import mix
from .base import Sampler, SamplerConfig, Window

Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PositionStratifiedConfig(SamplerConfig):
    """Draw fewer rows of position 0, cap their share of every batch, and draw the rest evenly by position."""

    kind: Literal["position_stratified"] = "position_stratified"
    bos_factor: float = 0.3
    """Share of the rows at position 0 that is drawn, chosen by a hash of (seed, epoch, row)."""
    max_bos_share: float = 0.2
    """Largest share of position 0 in any batch, whatever the factor."""
    balanced: bool = False
    """Draw as many rows of every bin of positions as the smallest one has; false: draw all rows after position 0."""
    bins: int | None = None
    """Balanced: equal bins of the positions after 0; null: 10."""
    adaptive: bool = False
    """Choose the factor, from pool to pool, so that position 0 holds a set share of the activation Σ z; `bos_factor` is
    that of the first pool."""
    target_ratio: float = 1.0
    """Adaptive: that share, in multiples of the share of the corpus's rows at position 0. 1: position 0 weighs in
    training as much as it would if its rows activated like any other."""
    ema: float = 0.99
    """Adaptive: decay, per step, of the moving average of how strongly position 0 activates."""
    min_factor: float = 0.01
    """Adaptive: smallest factor."""
    max_factor: float = 1.0
    """Adaptive: largest factor."""

    def __post_init__(self) -> None:
        for name in ("bos_factor", "max_bos_share", "min_factor", "max_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: a share in [0, 1], found {getattr(self, name)}")
        if self.bins is not None and self.bins < 1:
            raise ValueError(f"bins must be at least 1, not {self.bins}")
        if not self.target_ratio > 0:
            raise ValueError(f"target_ratio must be positive, not {self.target_ratio}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: a decay in [0, 1), found {self.ema}")
        if self.min_factor > self.max_factor:
            raise ValueError(f"min_factor {self.min_factor} is above max_factor {self.max_factor}")

        # A setting that does nothing is refused: whoever reads the settings of a run must be able to believe them.
        if self.bins is not None and not self.balanced:
            raise ValueError(f"bins: {self.bins} does nothing with balanced: false; set balanced: true, or bins: null")
        idle = [name for name in ADAPTIVE if not self.adaptive and getattr(self, name) != ADAPTIVE[name]]
        if idle:
            raise ValueError(f"{', '.join(idle)}: nothing uses this with adaptive: false; set adaptive: true")

    @property
    def n_bins(self) -> int:
        """Bins of the positions after 0."""
        return 10 if self.bins is None else self.bins

    @property
    def follows_training(self) -> bool:
        return self.adaptive


ADAPTIVE = {"target_ratio": 1.0, "ema": 0.99, "min_factor": 0.01, "max_factor": 1.0}
"""The settings that only `adaptive` uses, with their defaults."""


class PositionStratified(Sampler):
    """Rows at position 0 by hash up to the cap, the others whole or evenly by bin; in random order under the cap.

    A run of B rows may start anywhere, so the cap of m = ⌊max_bos_share · B⌋ is kept by place: position-0 rows lie only
    where ⌊k·B/m⌋, k ≥ 1, of their window. Any B consecutive rows hold at most m such places, also across windows: a
    window gives less than its length · m/B of them, and the one cut at its start less than 1 more.
    """

    config_class: ClassVar[type[SamplerConfig]] = PositionStratifiedConfig
    config: PositionStratifiedConfig

    def __init__(self, config: PositionStratifiedConfig) -> None:
        super().__init__(config)
        self._average: float | None = None  # of log enrichment

    def order(self, window: Window) -> Index:
        rest, bos = self._drawn(window)
        # The hash decided which position-0 rows are drawn, the generator decides where they go. Both depend on the
        # window alone, so a resumed run draws the same rows in the same order.
        generator = window.generator()
        n = len(rest) + len(bos)
        places = generator.choice(allowed_places(n, window.batch_size, self.config.max_bos_share), len(bos), False)
        at_bos = np.zeros(n, np.bool_)
        at_bos[places] = True
        out = np.empty(n, np.int64)
        out[at_bos] = generator.permutation(bos)
        out[~at_bos] = generator.permutation(rest)
        return out

    def count(self, window: Window) -> int:
        return sum(map(len, self._drawn(window)))

    def _drawn(self, window: Window) -> tuple[Index, Index]:
        """(rows after position 0, rows at position 0), as indices into the window."""
        c = self.config
        score = hashed(window.row, window.seed, window.epoch)
        rest, bos = np.flatnonzero(window.position), np.flatnonzero(window.position == 0)
        if c.balanced and len(rest):
            rest = self._balanced(rest, window, score)
        factor = c.bos_factor if window.control is None else self.factor(len(bos), len(rest), window)
        bos = bos[score[bos] < factor]
        # `most` is as many as `order` has places for. The smallest hashes stay, so lowering the cap only removes rows.
        most = most_bos(len(rest), window.batch_size, c.max_bos_share)
        if len(bos) > most:
            bos = np.sort(bos[np.argsort(score[bos], kind="stable")[:most]])
        return rest, bos

    def _balanced(self, rest: Index, window: Window, score: NDArray[np.float64]) -> Index:
        """As many of every bin as the smallest has, those with the smallest hashes."""
        bins = position_bins(window.position[rest].astype(np.int64), window.ctx, self.config.n_bins) - 1
        sizes = np.bincount(bins, minlength=self.config.n_bins)
        smallest = int(sizes[sizes > 0].min())
        order = np.lexsort((score[rest], bins))
        # `order` sorts by bin, then hash; the rank of a row is its place in that order, less where its bin begins.
        rank = np.arange(len(rest)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.sort(rest[order[rank < smallest]])

    # Adaptive. The share of Σ z at position 0 is f·n·e / (f·n·e + m), for n rows there of which a share f is drawn, m
    # other rows, and an enrichment e: how many times as strong such a row activates. The sampler can move f alone, so
    # it measures e, which does not depend on f, and solves for f. Nothing is integrated from pool to pool: a factor
    # that could only be nudged after each step would overshoot, because it takes effect a pool later.

    def factor(self, n_bos: int, n_rest: int, window: Window) -> float:
        """The factor with which position 0 holds its share of the activation, within the bounds."""
        c = self.config
        assert window.control is not None
        share = min(c.target_ratio * float((window.position == 0).mean()), 0.95) if len(window) else 0.0
        if not n_bos or not n_rest:
            return c.bos_factor
        wanted = share / (1 - share) * n_rest / (n_bos * window.control)
        return min(max(wanted, c.min_factor), c.max_factor)

    def control(self) -> float | None:
        """The enrichment so far."""
        return math.exp(self._average) if self.config.adaptive and self._average is not None else None

    def observe(self, enrichment: float | None) -> None:
        if enrichment is None or not enrichment > 0:
            return
        seen = math.log(min(max(enrichment, 1e-6), 1e6))
        self._average = (
            seen if self._average is None else self.config.ema * self._average + (1 - self.config.ema) * seen
        )

    def metrics(self) -> dict[str, float]:
        enrichment = self.control()
        return {} if enrichment is None else {"sampler/bos_enrichment": enrichment}

    def state(self) -> dict[str, Any]:
        return {"average": self._average} if self.config.adaptive else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._average = state["average"]


def hashed(row: Index, seed: int, epoch: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each row that depends on (seed, epoch, row) alone."""
    with np.errstate(over="ignore"):
        salt = mix(np.array([seed], np.uint64))[0] + np.uint64(epoch)
        scrambled = mix(row.astype(np.uint64) ^ mix(np.array([salt], np.uint64))[0])
    uniform: NDArray[np.float64] = (scrambled >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform


def allowed_places(n: int, batch_size: int, share: float) -> Index:
    """Places among n rows in order where a position-0 row may lie, so that no `batch_size` rows hold too many."""
    most = cap(batch_size, share)
    if most == batch_size:
        return np.arange(n, dtype=np.int64)
    # ⌊k·B/m⌋ < n exactly when k·B/m < n, that is k < n·m/B: k runs to ⌈n·m/B⌉ − 1.
    k = np.arange(1, -(-n * most // batch_size), dtype=np.int64)
    return k * batch_size // most if most else k


def most_bos(n_rest: int, batch_size: int, share: float) -> int:
    """How many position-0 rows have a place beside `n_rest` others."""
    most = cap(batch_size, share)
    if most == batch_size:
        return np.iinfo(np.int64).max
    # b rows have a place if b ≤ ⌈(n_rest + b)·m/B⌉ − 1, i.e. b·B < (n_rest + b)·m.
    return max(0, -(-n_rest * most // (batch_size - most)) - 1)


def cap(batch_size: int, share: float) -> int:
    """Position-0 rows that a batch may hold."""
    return int(share * batch_size + 1e-9)
