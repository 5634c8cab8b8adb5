"""BatchTopK: the k·B largest codes of a batch of B rows (Bussmann et al. 2024, arXiv 2412.06410).

A row may take more than k latents or fewer. One row alone must be encoded too, so the codes of a trained coder do not
depend on the batch: inference keeps whatever is above a threshold θ learnt along the way, as a JumpReLU does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .base import CoderConfig
from .codes import Codes
from .ops import LatentLists, dense_pre, gather_pre, sampled_dot
from .topk import TopK, TopKConfig

CANDIDATES = 4
"""The batch's largest codes are looked for among the CANDIDATES·k largest of each row first."""


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(TopKConfig):
    """BatchTopK."""

    architecture: Literal["batchtopk"] = "batchtopk"  # type: ignore[assignment]
    k: int = 16
    """Latents kept per row, on average over a batch."""
    threshold_ema: float = 0.999
    """Decay of the moving average of each step's smallest code kept: the threshold θ of inference."""
    threshold_warmup: int = 200
    """Steps at the beginning over which θ is simply the newest such code; the average starts there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold_ema < 1:
            raise ValueError(f"threshold_ema must be in [0, 1), not {self.threshold_ema}")
        if self.threshold_warmup < 1:
            raise ValueError(f"threshold_warmup must be at least 1, not {self.threshold_warmup}")

    @property
    def selects_over(self) -> Literal["row", "batch"]:
        return "batch"


class BatchTopK(TopK):
    """Training: z = the k·B largest of relu(u W_encᵀ + b_enc) over the batch. Evaluation: all of them above θ.

    Until the first step there is no θ (it is 0), and evaluation selects over the batch as training does.
    (An architecture that builds on this one may select over each row instead; it is a TopK then, without a θ.)
    """

    config_class: ClassVar[type[CoderConfig]] = BatchTopKConfig
    config: BatchTopKConfig

    def __init__(
        self, config: CoderConfig, d_in: int, d_out: int, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        if self.selection == "batch":
            self.register_buffer("threshold", torch.zeros(()))
            self.register_buffer("threshold_steps", torch.zeros((), dtype=torch.int64))

    threshold: Tensor
    threshold_steps: Tensor

    def encode_normalised(self, u: Tensor) -> Codes:
        if self.selection == "row":
            return super().encode_normalised(u)
        with torch.no_grad():
            latents, pre, kept = self._chosen(u)
        lists = LatentLists(latents, self.n_latents)
        # A slot that is not kept is 0 times a value: no gradient reaches the latent it names.
        values = torch.relu(gather_pre(u, self.w_enc, self.b_enc, latents, values=pre, lists=lists)) * kept
        return Codes(values, latents, self.n_latents, lists)

    def _chosen(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(latents [B, K], their pre-activations [B, K], which of them are codes [B, K] bool)."""
        pre = dense_pre(u, self.w_enc, self.b_enc, self.selection_dtype)
        if self.training or not bool(self.threshold > 0):
            latents, kept = select_batch(pre, self.config.k)
        else:
            latents, kept = packed(pre > self.threshold.to(pre.dtype))
        if pre.dtype != u.dtype:  # chosen in low precision; the values themselves are exact
            return latents, sampled_dot(u, self.w_enc, latents) + self.b_enc[latents], kept
        return latents, pre.gather(1, latents), kept

    @torch.no_grad()
    def after_step(self, codes: Codes) -> None:
        super().after_step(codes)
        if self.selection == "batch":
            active = codes.values.detach()
            self.update_threshold(torch.where(active > 0, active, torch.inf).amin())

    @torch.no_grad()
    def update_threshold(self, smallest: Tensor) -> None:
        """Move θ to a step's smallest code kept (a scalar; inf where none was, which moves nothing)."""
        # No decision is made on the host: the fused step replays these launches from a graph.
        found = torch.isfinite(smallest) & (smallest > 0)
        averaged = torch.lerp(smallest.to(self.threshold.dtype), self.threshold, self.config.threshold_ema)
        fresh = self.threshold_steps < self.config.threshold_warmup
        moved = torch.where(fresh, smallest.to(self.threshold.dtype), averaged)
        self.threshold.copy_(torch.where(found, moved, self.threshold))
        self.threshold_steps.add_(found)


def packed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The places where `mask` [B, F] holds: (latents [B, K], kept [B, K] bool), K the most of any row, at least 1.

    The first slots of each row are its places in ascending order; the others are not kept, and say 0.
    """
    counts = mask.sum(dim=1)
    width = max(1, int(counts.max())) if len(counts) else 1
    kept = torch.arange(width, device=mask.device) < counts.unsqueeze(1)
    latents = torch.zeros(kept.shape, dtype=torch.int64, device=mask.device)
    latents[kept] = mask.nonzero()[:, 1]
    return latents, kept


def select_batch(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k·B largest of relu(pre) over a whole batch, exactly.

    They are picked from the CANDIDATES·k largest of each row. That is all of them unless some row had every one of its
    candidates picked and so may have more to give; then they are picked from everything.

    Args:
        pre: [B, F] pre-activations.

    Returns:
        (latents [B, K], kept [B, K] bool); k·B are kept, fewer where fewer are positive; a latent once in each row.
    """
    n_rows, n_latents = pre.shape
    n_candidates = min(CANDIDATES * k, n_latents)
    values, candidates = pre.topk(n_candidates, dim=1, sorted=False)
    mask = _largest(values, k * n_rows)
    if n_candidates < n_latents and bool(mask.all(dim=1).any()):
        return packed(_largest(pre, k * n_rows))
    slots, kept = packed(mask)
    return candidates.gather(1, slots), kept


def _largest(values: Tensor, n: int) -> Tensor:
    """Which entries of [B, C] are the n largest of all and positive: [B, C] bool. Ties are cut, so never more."""
    chosen = values.reshape(-1).topk(min(n, values.numel()), sorted=False).indices
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[chosen] = True
    return mask.view_as(values) & (values > 0)
