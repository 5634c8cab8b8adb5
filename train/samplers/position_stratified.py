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
    bins: int = 10
    """Equal bins of the positions after 0."""
    balanced: bool = False
    """Draw as many rows of every bin as the smallest one has; false: draw all rows after position 0."""
    adaptive: bool = False
    """Let the factor follow the share of the activation at position 0; it changes from pool to pool."""
    target: float = 0.2
    """Adaptive: moving average of that share at which the factor stays as it is; above it the factor falls."""
    rate: float = 0.01
    """Adaptive: speed η of each step."""
    ema: float = 0.99
    """Adaptive: decay of the moving average."""
    min_factor: float = 0.01
    """Adaptive: smallest factor."""
    max_factor: float = 1.0
    """Adaptive: largest factor."""

    def __post_init__(self) -> None:
        for name in ("bos_factor", "max_bos_share", "target", "min_factor", "max_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: a share in [0, 1], found {getattr(self, name)}")
        if self.bins < 1:
            raise ValueError(f"bins must be at least 1, not {self.bins}")
        if self.min_factor > self.max_factor:
            raise ValueError(f"min_factor {self.min_factor} is above max_factor {self.max_factor}")

    @property
    def follows_training(self) -> bool:
        return self.adaptive


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
        self._factor = config.bos_factor
        self._average: float | None = None

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
        bos = bos[score[bos] < (c.bos_factor if window.control is None else window.control)]
        # `most` is as many as `order` has places for. The smallest hashes stay, so lowering the cap only removes rows.
        most = most_bos(len(rest), window.batch_size, c.max_bos_share)
        if len(bos) > most:
            bos = np.sort(bos[np.argsort(score[bos], kind="stable")[:most]])
        return rest, bos

    def _balanced(self, rest: Index, window: Window, score: NDArray[np.float64]) -> Index:
        """As many of every bin as the smallest has, those with the smallest hashes."""
        bins = position_bins(window.position[rest].astype(np.int64), window.ctx, self.config.bins) - 1
        sizes = np.bincount(bins, minlength=self.config.bins)
        smallest = int(sizes[sizes > 0].min())
        order = np.lexsort((score[rest], bins))
        # `order` sorts by bin, then hash; the rank of a row is its place in that order, less where its bin begins.
        rank = np.arange(len(rest)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.sort(rest[order[rank < smallest]])

    # Adaptive

    def control(self) -> float | None:
        return self._factor if self.config.adaptive else None

    def observe(self, bos_share: float) -> None:
        c = self.config
        self._average = bos_share if self._average is None else c.ema * self._average + (1 - c.ema) * bos_share
        moved = self._factor * math.exp(-c.rate * (self._average - c.target))
        self._factor = min(max(moved, c.min_factor), c.max_factor)

    def state(self) -> dict[str, Any]:
        return {"factor": self._factor, "average": self._average} if self.config.adaptive else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._factor, self._average = state["factor"], state["average"]


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
