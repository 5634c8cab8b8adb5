"""Settings of the position report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base import ReportConfig

EXCLUDED = 65535
"""Marks a row that does not count; every slot is below it."""


@dataclass(frozen=True, kw_only=True)
class PositionConfig(ReportConfig):
    """Where in the sequence latents fire."""

    kind: Literal["position"] = "position"
    bins: int = 10
    """Equal bins of the positions after 0."""
    min_fired: int = 50
    """Latents that fire on fewer rows are marked, not scored."""
    top: int = 100
    """Top activations whose share of position 0 is reported."""
    context: int = 20
    """Tokens ahead of the peak that must agree for two contexts to be identical."""
    q: float = 0.01
    """False discovery rate of the tests."""
    bos_share: float = 0.2
    """Effect gate: a BOS-biased latent has a larger share of its firings at position 0 than this …"""
    bos_enrichment: float = 5.0
    """… and fires there this many times as often as the number of rows suggests."""
    bin_share: float = 0.5
    """Effect gate: a position-biased latent has a larger share of its other firings in one of the bins than this."""
    shifts: int = 200
    """Random circular shifts within every sequence: the null of mutual information."""

    def __post_init__(self) -> None:
        if self.bins < 2 or self.top < 1 or self.min_fired < 1 or self.shifts < 2:
            raise ValueError("bins and shifts are at least 2, top and min_fired at least 1")
        if self.shifts * (self.bins + 1) >= EXCLUDED:
            raise ValueError(f"shifts · (bins + 1) must be below {EXCLUDED}")
