"""Settings of the penalty `activation_correlation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import PenaltyConfig


@dataclass(frozen=True, kw_only=True)
class ActivationCorrelationConfig(PenaltyConfig):
    """Squared correlation beyond a threshold, over a random subset of latents."""

    kind: Literal["activation_correlation"] = "activation_correlation"
    weight: float = 0.005
    threshold: float = 0.0
    """τ: correlations up to it cost nothing. 0: the mean of r²; 0.7: a hinge just under the reported threshold."""
    latents: int = 1024
    """Largest number of latents compared, drawn anew at each step from those that fired often enough."""
    min_fired: int = 8
    """Rows of the batch (excluding position 0) that a latent must fire on."""
    per: Literal["pair", "latent"] = "pair"
    """pair: the mean over all pairs of the subset. latent: their sum divided by the number of latents, because
    duplicates grow with the dictionary and pairs with its square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold: a correlation in [0, 1), not {self.threshold}")
        if self.latents < 2:
            raise ValueError(f"latents must be at least 2, not {self.latents}")
        if self.min_fired < 2:
            raise ValueError(f"min_fired must be at least 2, not {self.min_fired}")
