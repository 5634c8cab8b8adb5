"""Decoder orthogonality: the mean squared cosine between different decoder rows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
from .base import Penalty, StepBatch
from .configs.base import PenaltyConfig
from .configs.decoder_orthogonality import DecoderOrthogonalityConfig


class DecoderOrthogonality(Penalty):
    """mean_{i≠j} cos²(w_i, w_j) = (‖DᵀD‖²_F − F) / (F(F − 1)), D the normalised rows [F, d].

    Needs only the d×d Gram matrix. F rows in d < F dimensions cannot do better than about 1/d.
    """

    config_class: ClassVar[type[PenaltyConfig]] = DecoderOrthogonalityConfig

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        rows = torch.nn.functional.normalize(coder.w_dec, dim=1)
        n = rows.shape[0]
        if n < 2:
            return rows.sum() * 0
        # Rows of length zero (a free decoder starts there) normalise to zero and have no cosine with themselves.
        own = rows.square().sum(dim=1).square().sum()
        return ((rows.T @ rows).square().sum() - own) / (n * (n - 1))
