"""TopK: the k largest pre-activations of each row, then ReLU (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import Coder, Widths
from .codes import Codes
from .configs.base import CoderConfig
from .configs.topk import TopKConfig
from .ops import LatentLists, dense_pre, gather_pre, nested_squared_error, sampled_dot


class TopK(Coder):
    """z = ReLU(the k largest of u W_encᵀ + b_enc)."""

    config_class: ClassVar[type[CoderConfig]] = TopKConfig
    config: TopKConfig

    def __init__(
        self, config: CoderConfig, d_in: Widths, d_out: Widths, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        self.selection = self.config.selects_over

    @property
    def k(self) -> int:
        """Latents kept per row: those of this step in training, `config.k` otherwise."""
        return self.config.k_at(self.context, self.training)

    def encode_normalised(self, u: Tensor) -> Codes:
        u = self.centred(u)
        latents, pre = self.select(u)
        lists = LatentLists(latents, self.n_latents)
        values = torch.relu(gather_pre(u, self.w_enc, self.b_enc, latents, values=pre, lists=lists))
        return Codes(values, latents, self.n_latents, lists)

    @torch.no_grad()
    def select(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(latents [B, k] int64, their pre-activations [B, k]) of the k largest of u W_encᵀ + b_enc in each row; of
        several sites, the k largest after multiplication by `selection_weights`."""
        pre = dense_pre(u, self.w_enc, self.b_enc, self.selection_dtype)
        weights = self.selection_weights()
        if weights is None:
            values, latents = pre.topk(self.k, dim=1, sorted=False)
        else:
            latents = (pre * weights.to(pre.dtype)).topk(self.k, dim=1, sorted=False).indices
            values = pre.gather(1, latents)
        if values.dtype != u.dtype:  # selected in low precision; the values themselves are exact
            values = sampled_dot(u, self.w_enc, latents) + self.b_enc[latents]
        return latents, values

    def losses(self, u: Tensor, t: Tensor, codes: Codes) -> dict[str, Tensor]:
        squares, residual = self.squared_errors(codes, self.offset(u) - t)
        terms = {"reconstruction": squares.mean() / t.numel()}
        aux = self.aux_loss(u, -residual)
        if aux is not None:
            terms["aux"] = aux
        return terms

    def squared_errors(self, codes: Codes, base: Tensor) -> tuple[Tensor, Tensor]:
        """`nested_squared_error` of a batch's codes, with this coder's prefixes.

        Args:
            base: [B, d_out] the offset minus the target.
        """
        assert codes.latents is not None
        prefixes = self.prefixes or (self.n_latents,)
        return nested_squared_error(
            codes.values, codes.latents, self.w_dec, base=base, prefixes=prefixes, lists=codes.lists
        )
