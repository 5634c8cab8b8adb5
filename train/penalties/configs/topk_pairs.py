"""Settings of the penalty `topk_pairs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import PenaltyConfig


@dataclass(frozen=True, kw_only=True)
class TopkPairsConfig(PenaltyConfig):
    """A hinge on the share of pairs with the largest overlap."""

    kind: Literal["topk_pairs"] = "topk_pairs"
    weight: float = 0.1
    share: float = 0.001
    """Pairs selected, as a share of all F(F − 1)/2."""
    on: Literal["activation", "decoder"] = "activation"
    """What is penalised in the selected pairs: the overlap that selected them, or the cosine of their decoder rows."""
    threshold: float | Literal["adaptive"] = 0.1
    """τ: values up to it cost nothing. adaptive: a moving average of a quantile of the selected pairs' own values."""
    quantile: float = 0.5
    """Adaptive: which quantile. Far above the default, nearly all pairs lie under τ and the penalty is 0."""
    ema: float = 0.99
    """Decay of the moving averages."""
    with_bos: bool = False
    """Include position 0, where all latents that fire overlap."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share: a share in (0, 1], not {self.share}")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile must be between 0 and 1, not {self.quantile}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), not {self.ema}")

    def n_pairs(self, n_latents: int) -> int:
        """How many pairs are selected."""
        return max(1, int(self.share * (n_latents * (n_latents - 1) // 2)))
