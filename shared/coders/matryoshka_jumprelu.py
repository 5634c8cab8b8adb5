"""Matryoshka over JumpReLU: nested prefixes of a dictionary with learned thresholds (Gemma Scope 2)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from .codes import Codes
from .configs.base import CoderConfig
from .configs.matryoshka_jumprelu import MatryoshkaJumpReLUConfig
from .jumprelu import JumpReLU
from .nested import Nested


class MatryoshkaJumpReLU(Nested, JumpReLU):
    """JumpReLU's codes and penalties; the reconstruction loss is the mean over prefixes m_1 < … < m_G = F of the
    squared error of Σ_{i < m_g} z_i w_i + b."""

    config_class: ClassVar[type[CoderConfig]] = MatryoshkaJumpReLUConfig
    config: MatryoshkaJumpReLUConfig

    def fit(self, u: Tensor, t: Tensor, codes: Codes) -> dict[str, Tensor]:
        error = t - self.offset(u)
        total = t.new_zeros(())
        for start, stop in pairwise((0, *self.prefixes)):
            error = error - codes.values[:, start:stop] @ self.w_dec[start:stop]
            total = total + error.square().mean()
        terms = {"reconstruction": total / len(self.prefixes)}
        aux = self.aux_loss(u, error.detach())
        if aux is not None:
            terms["aux"] = aux
        return terms
