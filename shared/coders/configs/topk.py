"""Settings of TopK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import CoderConfig, StepContext


@dataclass(frozen=True, kw_only=True)
class TopKConfig(CoderConfig):
    """TopK."""

    architecture: Literal["topk"] = "topk"
    k: int = 16
    """Latents kept per row."""
    k_start: int | None = None
    """k at the beginning, which moves along a line to `k`; null: `k` from the beginning."""
    k_steps: int | None = None
    """Steps from `k_start` to `k`; null: half of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("k", "k_start"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= self.latents:
                raise ValueError(f"{name} must be between 1 and latents = {self.latents}, not {value}")
        if self.k_steps is not None and (self.k_steps < 1 or self.k_start is None):
            raise ValueError("k_steps must be at least 1, and needs k_start")

    def k_at(self, context: StepContext, training: bool) -> int:
        """k of a step in training; `k` outside training."""
        if self.k_start is None or not training:
            return self.k
        return round(context.along(self.k_start, self.k, self.k_steps))

    @property
    def selects_over(self) -> Literal["row", "batch"]:
        """Whether k latents are kept in each row, or on average over a batch."""
        return "row"
