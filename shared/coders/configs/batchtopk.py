"""Settings of BatchTopK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .topk import TopKConfig


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(TopKConfig):
    """BatchTopK."""

    architecture: Literal["batchtopk"] = "batchtopk"  # type: ignore[assignment]
    k: int = 16
    """Latents kept per row, on average over a batch."""
    threshold_ema: float = 0.999
    """Decay of the moving average of each step's smallest kept code: the threshold θ of inference."""
    threshold_warmup: int = 200
    """First steps in which θ is the latest such code; the average starts from the last of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold_ema < 1:
            raise ValueError(f"threshold_ema must be in [0, 1), not {self.threshold_ema}")
        if self.threshold_warmup < 1:
            raise ValueError(f"threshold_warmup must be at least 1, not {self.threshold_warmup}")

    @property
    def selects_over(self) -> Literal["row", "batch"]:
        return "batch"
