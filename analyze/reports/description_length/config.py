"""Settings of the description length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..base import ReportConfig


@dataclass(frozen=True, kw_only=True)
class DescriptionLengthConfig(ReportConfig):
    """How many bits it takes to say which latents fire and how strongly (Ayonrinde et al. 2024)."""

    kind: Literal["description_length"] = "description_length"
    by_default: ClassVar[bool] = False
    rows: int = 16_384
    """Number of rows to measure on, excluding position 0, evenly over those under analysis."""
    bins: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """Numbers of equal bins, from 0 to its largest activation, that a latent's activations are rounded to."""
    tolerance: float = 0.01
    """The headline is that of the fewest bins whose FVU exceeds the unrounded one by at most this share of it."""

    def __post_init__(self) -> None:
        if self.rows < 100 or not self.bins or min(self.bins) < 2 or len(set(self.bins)) < len(self.bins):
            raise ValueError("rows is at least 100; bins are different numbers of at least 2")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, not {self.tolerance}")
