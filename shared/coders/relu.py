"""ReLU with an L1 penalty: the classical sparse autoencoder (Bricken et al. 2023, "Towards Monosemanticity")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .base import CoderConfig
from .codes import Codes
from .dense import DenseCoder, DenseCodes


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(CoderConfig):
    """ReLU with L1."""

    architecture: Literal["relu"] = "relu"
    l1_coef: float = 0.04
    """Weight of Σ z_i·‖w_i‖ for targets of mean squared norm 1; larger values give sparser codes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1_coef < 0:
            raise ValueError(f"l1_coef must be 0 or more, not {self.l1_coef}")


class ReLU(DenseCoder):
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
        return self.fit(u, t, codes) | {"sparsity": self.config.l1_coef * self.weighted_l1(codes.values)}
