"""JumpReLU: a learned threshold for each latent, trained on L0 itself (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Widths
from .codes import Codes
from .configs.base import CoderConfig
from .configs.jumprelu import JumpReLUConfig
from .dense import DenseCodes
from .sparsity import PenalisedCoder


class JumpReLU(PenalisedCoder):
    """z = π·[π > θ], θ = exp(log_threshold) > 0; the loss adds a penalty on the frequencies p_i = mean [π_i > θ_i].

    - without a target: l0_coef · Σ_i p_i (arXiv 2407.14435).
    - with one: l0_coef · (2/L0*) · (Σ_i p_i − L0*)² (Gemma Scope 2, technical report 2025), p_i over the rows outside
      position 0.
    - `max_frequency`: frequency_coef · Σ_i ReLU(p_i − max_frequency)² besides. Gemma Scope 2 penalises dense latents
      through the same frequencies; the form is not published, this one is ours.

    z and p are step functions of θ: their gradient is 0 almost everywhere, although the *expected* loss is smooth in θ,
    because raising θ by δ switches off the pre-activations in (θ, θ + δ]. Straight-through gradients estimate that
    density from the pre-activations within ε/2 of θ, with the rectangle kernel K(x) = [|x| < ½] (section 3 and appendix
    of the paper): ∂z/∂θ = −(θ/ε) K((π − θ)/ε), ∂[π > θ]/∂θ = −(1/ε) K((π − θ)/ε).
    """

    config_class: ClassVar[type[CoderConfig]] = JumpReLUConfig
    config: JumpReLUConfig
    levelled_by_bias = False

    def __init__(
        self, config: CoderConfig, d_in: Widths, d_out: Widths, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        first = math.log(self.config.first_threshold)
        self.log_threshold = nn.Parameter(torch.full((self.n_latents,), first))

    @property
    def controlled(self) -> bool:
        return super().controlled and not self.config.quadratic

    @property
    def learning_rates(self) -> dict[str, float]:
        return {"log_threshold": self.config.threshold_rate}

    def raise_level(self, by: Tensor) -> None:
        if self.log_threshold.requires_grad:
            self.log_threshold.add_(by)

    def encode_normalised(self, u: Tensor) -> Codes:
        pre = self.pre(u)
        values = _Jump.apply(pre, self.log_threshold.exp(), self.config.bandwidth)  # type: ignore[no-untyped-call]
        return DenseCodes(values, None, self.n_latents, pre=pre)

    def losses(self, u: Tensor, t: Tensor, codes: Codes) -> dict[str, Tensor]:
        return self.fit(u, t, codes) | self.sparsity(u, codes)

    def sparsity(self, u: Tensor, codes: Codes) -> dict[str, Tensor]:
        """The terms "sparsity", and "dense" where `max_frequency` is set."""
        c, target = self.config, self.target_l0
        active: Tensor = _Step.apply(  # type: ignore[no-untyped-call]
            self.pre_of(u, codes).detach(), self.log_threshold.exp(), c.bandwidth
        )
        weight = self.strength * c.coefficient
        if c.penalty == "tanh_quadratic":
            size = codes.values * self.row_norms()
            often = self.counted(torch.tanh(c.tanh_scale * size))
            terms = {"sparsity": weight * (often * (1 + often / c.tanh_share)).sum()}
        elif target is not None:
            distance = self.counted(active).sum() - target
            terms = {"sparsity": weight * (2 / target) * distance.square()}
        else:
            terms = {"sparsity": weight * active.sum(dim=1).mean()}
        if c.max_frequency is not None:
            above = torch.relu(self.counted(active) - c.max_frequency)
            terms["dense"] = c.frequency_coef * above.square().sum()
        return terms


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
