"""Settings of the penalty `tracked_pairs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import PenaltyConfig


@dataclass(frozen=True, kw_only=True)
class TrackedPairsConfig(PenaltyConfig):
    """Squared correlation beyond a threshold, of pairs nominated from a window of batches."""

    kind: Literal["tracked_pairs"] = "tracked_pairs"
    weight: float = 5.0
    every: int = 2
    threshold: float = 0.7
    """τ: |r| up to it costs nothing. The default lies a little under the r that is reported as a duplicate."""
    margin: float = 0.05
    """Pairs with |r| of at least τ − margin are tracked, so that a pair just under τ is not dropped and found again."""
    period: int = 100
    """Steps between nominations."""
    window: int = 30
    """Batches that a nomination is computed from: those right before it."""
    memory: int = 3
    """Batches that r averages over after the nomination. A longer memory pushes pairs further apart than needed."""
    start: int = 200
    """Steps before the first nomination."""
    min_fired: int = 10
    """Rows of the window (excluding position 0) that a latent must fire on."""
    min_both: int = 4
    """Rows of the window that both latents of a pair must fire on."""
    push: Literal["both", "weaker"] = "both"
    """Which latents of a pair the penalty moves: both, or only the one with the smaller Σ z²; the other keeps the
    shared activation."""
    merge: float | None = None
    """r in the window from which two latents count as one: `train.reseed` then merges them, and starts the weaker
    anew. null: no merging."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge is not None and not self.threshold <= self.merge < 1:
            raise ValueError(f"merge: null or a correlation from the threshold {self.threshold} to 1, not {self.merge}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold: a correlation in [0, 1), not {self.threshold}")
        if not 0 <= self.margin <= self.threshold:
            raise ValueError(f"margin: between 0 and the threshold {self.threshold}, not {self.margin}")
        if min(self.period, self.window, self.memory, self.min_both) < 1 or self.start < 0 or self.min_fired < 2:
            raise ValueError(
                "period, window, memory and min_both must be at least 1, start at least 0, min_fired at least 2"
            )
        if self.window * self.every > self.period:
            raise ValueError(
                f"window: {self.window} batches, every {self.every} steps, do not fit between nominations "
                f"{self.period} steps apart"
            )
