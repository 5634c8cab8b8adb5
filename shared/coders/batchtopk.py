"""BatchTopK: the k·B largest codes of a batch of B rows (Bussmann et al. 2024, arXiv 2412.06410).

A row may keep more or fewer than k latents. The codes of a trained coder must not depend on the batch, so inference
keeps every code above a threshold θ that training learns, as a JumpReLU does.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import Widths
from .codes import Codes
from .configs.base import CoderConfig
from .configs.batchtopk import BatchTopKConfig
from .ops import LatentLists, dense_pre, gather_pre, sampled_dot
from .topk import TopK

CANDIDATES = 4
"""The batch's largest codes are first searched among the CANDIDATES·k largest of each row."""


class BatchTopK(TopK):
    """Training: z = the k·B largest of relu(u W_encᵀ + b_enc) over the batch. Evaluation: every code above θ.

    Before the first step θ is 0, and evaluation selects over the batch as training does. A subclass may select in
    each row instead; it is then a TopK, without θ.
    """

    config_class: ClassVar[type[CoderConfig]] = BatchTopKConfig
    config: BatchTopKConfig

    def __init__(
        self, config: CoderConfig, d_in: Widths, d_out: Widths, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        if self.selection == "batch":
            self.register_buffer("threshold", torch.zeros(()))
            self.register_buffer("threshold_steps", torch.zeros((), dtype=torch.int64))

    @property
    def thresholds(self) -> Tensor:
        """θ as a threshold of each latent's pre-activation [F]: of several sites, θ / Σ_l ‖w_i^l‖."""
        weights = self.selection_weights()
        return self.threshold.expand(self.n_latents) if weights is None else self.threshold / weights

    threshold: Tensor
    threshold_steps: Tensor

    def encode_normalised(self, u: Tensor) -> Codes:
        if self.selection == "row":
            return super().encode_normalised(u)
        u = self.centred(u)
        with torch.no_grad():
            latents, pre, kept = self._chosen(u)
        lists = LatentLists(latents, self.n_latents)
        # a slot that is not kept is multiplied by 0, so no gradient reaches its latent
        values = torch.relu(gather_pre(u, self.w_enc, self.b_enc, latents, values=pre, lists=lists)) * kept
        return Codes(values, latents, self.n_latents, lists)

    def _chosen(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(latents [B, K], their pre-activations [B, K], which of them are codes [B, K] bool)."""
        pre = dense_pre(u, self.w_enc, self.b_enc, self.selection_dtype)
        weights = self.selection_weights()
        score = pre if weights is None else pre * weights.to(pre.dtype)
        if self.training or not bool(self.threshold > 0):
            latents, kept = self.select_over_batch(score)
        else:
            latents, kept = packed(score > self.threshold.to(pre.dtype))
        if pre.dtype != u.dtype:  # selected in low precision; the values themselves are exact
            return latents, sampled_dot(u, self.w_enc, latents) + self.b_enc[latents], kept
        return latents, pre.gather(1, latents), kept

    def select_over_batch(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """`select_batch` of a step's scores [B, F]."""
        return select_batch(score, self.k)

    @torch.no_grad()
    def after_step(self, codes: Codes) -> None:
        super().after_step(codes)
        if self.selection == "batch":
            active = codes.values.detach()
            weights = self.selection_weights()
            if weights is not None and codes.latents is not None:
                active = active * weights[codes.latents]
            self.update_threshold(torch.where(active > 0, active, torch.inf).amin())

    @torch.no_grad()
    def update_threshold(self, smallest: Tensor) -> None:
        """Update θ with a step's smallest kept code (a scalar; inf if no code was kept: then θ stays)."""
        follow(self.threshold, self.threshold_steps, smallest, self.config)


def follow(threshold: Tensor, steps: Tensor, smallest: Tensor, config: BatchTopKConfig) -> None:
    """Moves thresholds θ after a step, in place: one, or one for each layer.

    Args:
        threshold, steps: θ, and how often it has moved.
        smallest: the step's smallest kept code of each; inf where none was kept: then θ stays.
    """
    # No branch on the host: the fused step replays these kernels from a CUDA graph.
    found = torch.isfinite(smallest) & (smallest > 0)
    averaged = torch.lerp(smallest.to(threshold.dtype), threshold, config.threshold_ema)
    moved = torch.where(steps < config.threshold_warmup, smallest.to(threshold.dtype), averaged)
    threshold.copy_(torch.where(found, moved, threshold))
    steps.add_(found)


def packed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The true places of `mask` [B, F]: (latents [B, K], kept [B, K] bool), K the largest count of a row, at least 1.

    The first slots of each row hold its places in ascending order; the others are not kept and hold 0.
    """
    counts = mask.sum(dim=1)
    width = max(1, int(counts.max())) if len(counts) else 1
    kept = torch.arange(width, device=mask.device) < counts.unsqueeze(1)
    latents = torch.zeros(kept.shape, dtype=torch.int64, device=mask.device)
    latents[kept] = mask.nonzero()[:, 1]
    return latents, kept


def select_batch(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k·B largest of relu(pre) over a whole batch, exactly.

    They are selected among the CANDIDATES·k largest of each row, a far smaller set than all B·F. This is exact unless
    some row had all of its candidates selected: an entry outside the candidates is at most as large as its row's
    smallest candidate, and if that one was not selected, neither is the entry. Otherwise the selection is repeated over
    all entries.

    Args:
        pre: [B, F] pre-activations.

    Returns:
        (latents [B, K], kept [B, K] bool); k·B are kept, or fewer if fewer are positive; a latent occurs once per row.
    """
    n_rows, n_latents = pre.shape
    n_candidates = min(CANDIDATES * k, n_latents)
    values, candidates = pre.topk(n_candidates, dim=1, sorted=False)
    mask = largest(values, k * n_rows)
    if n_candidates < n_latents and bool(mask.all(dim=1).any()):
        return packed(largest(pre, k * n_rows))
    slots, kept = packed(mask)
    return candidates.gather(1, slots), kept


def largest(values: Tensor, n: int) -> Tensor:
    """The positive ones among the n largest of values [B, C]: [B, C] bool, at most n even with ties."""
    chosen = values.reshape(-1).topk(min(n, values.numel()), sorted=False).indices
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[chosen] = True
    return mask.view_as(values) & (values > 0)
