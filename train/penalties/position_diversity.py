"""Position diversity: each latent's activation is spread over the sequence, and not locked to position 0."""

from __future__ import annotations

import math
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
        sums = _sums_by_bin(codes, bins, n_bins)
        mass = sums.sum(dim=1)
        fired = mass > 0
        rows = torch.bincount(bins, minlength=n_bins)
        if not bool(fired.any()):
            self._parts = None
            return codes.values.sum() * 0
        sums, mass = sums[fired], mass[fired]
        bos = (sums[:, 0] / mass - self.config.bos_share).relu().mean()
        filled = rows > 0
        k = int(filled.sum())
        if k < 2:
            uneven = bos * 0
        else:
            means = sums[:, filled] / rows[filled]
            p = means / means.sum(dim=1, keepdim=True)
            entropy = -torch.special.xlogy(p, p.clamp_min(torch.finfo(p.dtype).tiny)).sum(dim=1)
            uneven = (1 - entropy / math.log(k)).mean()
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
