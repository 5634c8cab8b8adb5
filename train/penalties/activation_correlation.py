"""Activation correlation: Pearson's r between latents over the rows of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
from .base import Penalty, PenaltyConfig, StepBatch


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


class ActivationCorrelation(Penalty):
    """mean_{i<j} relu(|r_ij| − τ)², r_ij over the batch's rows excluding position 0.

    r is between latents, over tokens. A batch holds few firings of a rare latent, so r of rare pairs is mostly noise;
    `tracked_pairs` follows the pairs that stay correlated over many batches.
    """

    config_class: ClassVar[type[PenaltyConfig]] = ActivationCorrelationConfig
    config: ActivationCorrelationConfig

    def __init__(self, config: ActivationCorrelationConfig) -> None:
        super().__init__(config)
        self._r: Tensor | None = None
        self._compared = 0

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        rest = batch.rest
        ids = (codes.firing_counts(rest) >= self.config.min_fired).nonzero().squeeze(1)
        if len(ids) > self.config.latents:
            order = torch.randperm(len(ids), generator=batch.generator)[: self.config.latents]
            ids = ids[order.to(ids.device)]
        n = self._compared = len(ids)
        self._r = None
        if n < 2:
            return codes.values.sum() * 0
        z = codes.columns(ids)[rest]
        size = z.square().sum(dim=0)
        z = z - z.mean(dim=0)
        variance = z.square().sum(dim=0)
        # A latent that fires on every row with one value does not vary, rounding apart: it correlates with nothing.
        varies = variance > 1e-10 * size
        z = torch.where(varies, z / variance.where(varies, 1.0).sqrt(), 0.0)
        r = (z.T @ z).abs().triu(1)
        self._r = r.detach()
        pairs = n * (n - 1) / 2
        return (r - self.config.threshold).relu().square().sum() / (pairs if self.config.per == "pair" else n)

    def metrics(self) -> dict[str, float]:
        if self._r is None:
            return {"latents": self._compared}
        return {"latents": self._compared, "max_r": float(self._r.max())}
