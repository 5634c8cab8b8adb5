"""Position diversity: each latent's activation is spread over the sequence, and not locked to position 0."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
from ...shared.codes.positions import position_bins
from .base import Penalty, StepBatch
from .configs.base import PenaltyConfig
from .configs.position_diversity import PositionDiversityConfig


class PositionDiversity(Penalty):
    """mean_i [1 − H(p_i)/log K + relu(s_i − bos_share)] over the latents i that fired.

    p_ib ∝ m_ib, the mean activation of latent i on the batch's rows of bin b; K counts the bins with a row. Means, not
    sums: a latent that ignores position scores 0 however few rows a bin has. s_i is the share of Σz_i at position 0.
    """

    config_class: ClassVar[type[PenaltyConfig]] = PositionDiversityConfig
    config: PositionDiversityConfig

    def __init__(self, config: PositionDiversityConfig) -> None:
        super().__init__(config)
        self._parts: Tensor | None = None

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        n_bins = self.config.bins + 1
        bins = position_bins(batch.position.long(), batch.ctx, self.config.bins)
        # Masks instead of choosing latents and bins: no size depends on a code, so the host does not wait for a device.
        sums = _sums_by_bin(codes, bins, n_bins)
        mass = sums.sum(dim=1)
        fired = mass > 0
        n_fired = fired.sum().clamp_min(1)
        share = sums[:, 0] / torch.where(fired, mass, 1.0)
        bos = torch.where(fired, share - self.config.bos_share, 0.0).relu().sum() / n_fired
        rows = torch.zeros_like(sums[0]).index_add_(0, bins, torch.ones_like(bins, dtype=sums.dtype))
        means = sums / rows.clamp_min(1)
        p = means / torch.where(fired, means.sum(dim=1), 1.0).unsqueeze(1)
        entropy = -torch.special.xlogy(p, p.clamp_min(torch.finfo(p.dtype).tiny)).sum(dim=1)
        k = (rows > 0).sum()
        lack = torch.where(fired & (k > 1), 1 - entropy / k.clamp_min(2).to(p.dtype).log(), 0.0)
        uneven = lack.sum() / n_fired
        self._parts = torch.stack([uneven, bos]).detach()
        return uneven + bos

    def metrics(self) -> dict[str, float]:
        if self._parts is None:
            return {}
        uneven, bos = self._parts.tolist()
        return {"unevenness": uneven, "bos_excess": bos}


def _sums_by_bin(codes: Codes, bins: Tensor, n_bins: int) -> Tensor:
    """Σ z over the rows of each bin: [F, n_bins], differentiable."""
    if codes.latents is None:
        one_hot = torch.nn.functional.one_hot(bins, n_bins).to(codes.values.dtype)
        return codes.values.T @ one_hot
    at = codes.latents * n_bins + bins.unsqueeze(1)
    flat = codes.values.new_zeros(codes.n_latents * n_bins)
    return flat.index_add(0, at.reshape(-1), codes.values.reshape(-1)).view(codes.n_latents, n_bins)
