"""Settings of the penalty `massive_rows`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import PenaltyConfig


@dataclass(frozen=True, kw_only=True)
class MassiveRowsConfig(PenaltyConfig):
    """Pre-activations on massive rows, beyond those of the few latents that may explain them."""

    kind: Literal["massive_rows"] = "massive_rows"
    weight: float = 2.0
    keep: int = 4
    """Latents of a massive row, the strongest, that are left alone."""
    margin: float = 0.5
    """How far below zero the other latents' pre-activations are pushed on the row as training sees it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, not {self.keep}")
        if self.margin < 0:
            raise ValueError(f"margin must not be negative, and is {self.margin}")
