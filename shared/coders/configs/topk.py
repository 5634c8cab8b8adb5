"""Settings of TopK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import CoderConfig


@dataclass(frozen=True, kw_only=True)
class TopKConfig(CoderConfig):
    """TopK."""

    architecture: Literal["topk"] = "topk"
    k: int = 16
    """Latents kept per row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.latents:
            raise ValueError(f"k must be between 1 and latents = {self.latents}, not {self.k}")

    @property
    def selects_over(self) -> Literal["row", "batch"]:
        """Whether k latents are kept in each row, or on average over a batch."""
        return "row"
