"""JumpReLU: a learned threshold for each latent, trained on L0 itself (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .codes import Codes
from .configs.base import CoderConfig
from .configs.jumprelu import JumpReLUConfig
from .dense import DenseCoder, DenseCodes


class JumpReLU(DenseCoder):
    """z = π·[π > θ], θ = exp(log_threshold) > 0; the loss adds l0_coef · mean Σ_i [π_i > θ_i].

    Both are step functions of θ: their gradient is 0 almost everywhere, although the *expected* loss is smooth in θ,
    because raising θ by δ switches off the pre-activations in (θ, θ + δ]. Straight-through gradients estimate that
    density from the pre-activations within ε/2 of θ, with the rectangle kernel K(x) = [|x| < ½] (section 3 and appendix
    of the paper): ∂z/∂θ = −(θ/ε) K((π − θ)/ε), ∂[π > θ]/∂θ = −(1/ε) K((π − θ)/ε).
    """

    config_class: ClassVar[type[CoderConfig]] = JumpReLUConfig
    config: JumpReLUConfig

    def __init__(
        self, config: CoderConfig, d_in: int, d_out: int, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        self.log_threshold = nn.Parameter(torch.full((self.n_latents,), math.log(self.config.threshold)))

    def encode_normalised(self, u: Tensor) -> Codes:
        pre = self.pre(u)
        values = _Jump.apply(pre, self.log_threshold.exp(), self.config.bandwidth)  # type: ignore[no-untyped-call]
        return DenseCodes(values, None, self.n_latents, pre=pre)

    def losses(self, u: Tensor, t: Tensor, codes: Codes) -> dict[str, Tensor]:
        threshold = self.log_threshold.exp()
        active = _Step.apply(  # type: ignore[no-untyped-call]
            self.pre_of(u, codes).detach(), threshold, self.config.bandwidth
        )
        return self.fit(u, t, codes) | {"sparsity": self.config.l0_coef * active.sum(dim=1).mean()}


class _Jump(torch.autograd.Function):
    """pre·[pre > threshold] of pre [B, F], threshold [F]."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        (grad,) = grads
        to_pre = grad * (pre > threshold)
        inside = _window(pre, threshold, ctx.bandwidth)
        return to_pre, -(threshold / ctx.bandwidth) * (grad * inside).sum(dim=0), None


class _Step(torch.autograd.Function):
    """[pre > threshold] as numbers; a gradient for the threshold alone."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        inside = _window(pre, threshold, ctx.bandwidth)
        return None, -(grads[0] * inside).sum(dim=0) / ctx.bandwidth, None


def _window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return (pre - threshold).abs() < bandwidth / 2
