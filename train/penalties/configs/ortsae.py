"""Settings of the penalty `ortsae`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import PenaltyConfig


@dataclass(frozen=True, kw_only=True)
class OrtSAEConfig(PenaltyConfig):
    """Squared cosine of every decoder row to its nearest neighbour in a random chunk."""

    kind: Literal["ortsae"] = "ortsae"
    weight: float = 0.25
    chunk: int = 8192
    """Largest number of latents compared with one another; each step splits the dictionary at random into such
    chunks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk < 2:
            raise ValueError(f"chunk must be at least 2, not {self.chunk}")
