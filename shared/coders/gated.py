"""Gated: a gate decides which latents fire, a magnitude how strongly (Rajamanoharan et al. 2024, arXiv 2404.16014).

An L1 penalty on the codes shrinks them. Here it applies to the gate alone, which only decides whether a latent fires.
The magnitude uses the same direction with its own scale and bias, and only the reconstruction trains it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Widths
from .codes import Codes
from .configs.base import CoderConfig
from .configs.gated import GatedConfig
from .dense import DenseCodes
from .sparsity import PenalisedCoder


class Gated(PenalisedCoder):
    """z = [π > 0] · ReLU(e^r ⊙ (u W_encᵀ) + b_mag), π = u W_encᵀ + b_enc the gate (eq. 6 and 7 of the paper).

    Beside the reconstruction (eq. 8): l1_coef · mean Σ_i ReLU(π_i) ‖w_i‖ / √d_out as "sparsity", and as "gate" the
    reconstruction from ReLU(π) by a frozen copy of the decoder, without which nothing but the L1 would move the gate.

    Since r ties the two, a coder like this is a JumpReLU over its magnitudes m: [π > 0] = [m > b_mag − e^r b_enc].
    """

    config_class: ClassVar[type[CoderConfig]] = GatedConfig
    config: GatedConfig

    def __init__(
        self, config: CoderConfig, d_in: Widths, d_out: Widths, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        self.log_scale = nn.Parameter(torch.zeros(self.n_latents))
        self.b_mag = nn.Parameter(torch.zeros(self.n_latents))

    def encode_normalised(self, u: Tensor) -> Codes:
        gate = self.pre(u)
        magnitude = torch.relu((gate - self.b_enc) * self.log_scale.exp() + self.b_mag)
        return DenseCodes(magnitude * (gate > 0), None, self.n_latents, pre=gate)

    def losses(self, u: Tensor, t: Tensor, codes: Codes) -> dict[str, Tensor]:
        active = torch.relu(self.pre_of(u, codes))
        frozen = active @ self.w_dec.detach() + self.offset(u).detach()
        return self.fit(u, t, codes) | {
            "sparsity": self.strength * self.config.l1_coef * self.weighted_l1(active),
            "gate": (t - frozen).square().mean(),
        }
