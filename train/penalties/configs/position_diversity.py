"""Settings of the penalty `position_diversity`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import PenaltyConfig


@dataclass(frozen=True, kw_only=True)
class PositionDiversityConfig(PenaltyConfig):
    """Entropy of a latent's activation over positions, and its share at position 0."""

    kind: Literal["position_diversity"] = "position_diversity"
    weight: float = 0.01
    bins: int = 10
    """Equal bins of the positions after 0; position 0 is a bin of its own."""
    bos_share: float = 0.2
    """Share of a latent's activation at position 0 that costs nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 1:
            raise ValueError(f"bins must be at least 1, not {self.bins}")
        if not 0 <= self.bos_share <= 1:
            raise ValueError(f"bos_share: a share in [0, 1], not {self.bos_share}")
