"""Activation correlation: Pearson's r between latents over the rows of the batch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
from .base import Penalty, StepBatch
from .configs.activation_correlation import ActivationCorrelationConfig
from .configs.base import PenaltyConfig


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
