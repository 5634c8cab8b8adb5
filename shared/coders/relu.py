"""ReLU with an L1 penalty: the classical sparse autoencoder (Bricken et al. 2023, "Towards Monosemanticity")."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .codes import Codes
from .configs.base import CoderConfig
from .configs.relu import ReLUConfig
from .dense import DenseCodes
from .sparsity import PenalisedCoder


class ReLU(PenalisedCoder):
    """z = ReLU(π); the loss adds l1_coef · mean Σ_i z_i ‖w_i‖ / √d_out.

    The norms prevent evading the penalty through small codes with long decoder rows (`decoder_norm: free`; Anthropic,
    "Circuits Updates – April 2024").
    """

    config_class: ClassVar[type[CoderConfig]] = ReLUConfig
    config: ReLUConfig

    def encode_normalised(self, u: Tensor) -> Codes:
        pre = self.pre(u)
        return DenseCodes(torch.relu(pre), None, self.n_latents, pre=pre)

    def losses(self, u: Tensor, t: Tensor, codes: Codes) -> dict[str, Tensor]:
        return self.fit(u, t, codes) | {
            "sparsity": self.strength * self.config.l1_coef * self.weighted_l1(codes.values)
        }
