"""The base of coders whose codes are a dense function of all pre-activations, without a selection beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Coder
from .codes import Codes


@dataclass(frozen=True)
class DenseCodes(Codes):
    """Dense codes with their pre-activations [B, F], for losses on pre-activations."""

    pre: Tensor | None = None


class DenseCoder(Coder):
    """The pre-activations with ordinary gradients, the squared error and the weighted L1."""

    def pre(self, u: Tensor) -> Tensor:
        """π = u W_encᵀ + b_enc: [B, F] from [B, d_in]."""
        return torch.nn.functional.linear(self.centred(u), self.w_enc, self.b_enc)

    def pre_of(self, u: Tensor, codes: Codes) -> Tensor:
        """π of these codes, recomputed if they do not carry it."""
        kept = codes.pre if isinstance(codes, DenseCodes) else None
        return self.pre(u) if kept is None else kept

    def fit(self, u: Tensor, t: Tensor, codes: Codes) -> dict[str, Tensor]:
        """The terms "reconstruction", mean ‖t − t̂‖²/d_out, and "aux" if latents are dead."""
        error = t - self.decode_normalised(codes, u)
        terms = {"reconstruction": error.square().mean()}
        aux = self.aux_loss(u, error.detach())
        if aux is not None:
            terms["aux"] = aux
        return terms

    def weighted_l1(self, values: Tensor) -> Tensor:
        """Mean over rows of Σ_i values_i·‖w_i‖ / √d_out, of values [B, F] ≥ 0. Of several sites, Σ_l ‖w_i^l‖ / √L.

        The root rescales it to targets of mean squared norm 1, as the reconstruction term does, so that a coefficient
        means the same at every width.
        """
        total: Tensor = values @ self.row_norms()
        return total.mean() / math.sqrt(self.d_out * self.n_targets)
