"""The loss of end-to-end tuning: squared error and KL divergence in balance.

    L = (MSE + α β KL) / (1 + β) + the coder's other terms,   α = MSE / (KL + 1e-8), held constant

MSE is the coder's own reconstruction term (of nested coders, the mean over prefixes). KL(p ‖ p̂) compares the model's
next-token distributions with those of the model that runs with the coder, on average over the rows that the coder
replaces. With α both terms have the size of the MSE, so a sparsity penalty keeps the weight that it was trained with
(Braun et al. 2024, arXiv 2405.12241; Karvonen 2025, arXiv 2503.17272).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TINY = 1e-8
ROWS_AT_ONCE = 256
"""Rows whose distributions are held in memory at a time; a vocabulary may be wide."""


@dataclass(frozen=True)
class Terms:
    """The loss of a step.

    Attributes:
        total: what is differentiated.
        values: every term by name, detached: "reconstruction" (MSE), "kl", "alpha", and the coder's other terms.
    """

    total: Tensor
    values: dict[str, Tensor]


def balanced(terms: Mapping[str, Tensor], kl: Tensor, beta: float) -> Terms:
    """The loss of a step.

    Args:
        terms: the coder's own terms by name, "reconstruction" among them.
        kl: mean KL(p ‖ p̂) in nats, a scalar.
    """
    mse = terms["reconstruction"]
    alpha = (mse / (kl + TINY)).detach()
    others = {name: value for name, value in terms.items() if name != "reconstruction"}
    total = (mse + alpha * beta * kl) / (1 + beta) + sum(others.values(), start=mse.new_zeros(()))
    values = {"reconstruction": mse, "kl": kl, "alpha": alpha, **others}
    return Terms(total, {name: value.detach() for name, value in values.items()})


def mean_kl(clean: Tensor, spliced: Tensor) -> Tensor:
    """Mean over rows of KL(softmax(clean) ‖ softmax(spliced)) in nats; a gradient for `spliced` alone.

    Args:
        clean, spliced: [N, V] logits of the same rows.
    """
    found: Tensor = _MeanKL.apply(clean, spliced)  # type: ignore[no-untyped-call]
    return found


class _MeanKL(torch.autograd.Function):
    """∂/∂spliced = (softmax(spliced) − softmax(clean)) / N, computed with the value, a few rows at a time: autograd
    would keep four matrices [N, V]."""

    @staticmethod
    def forward(ctx: Any, clean: Tensor, spliced: Tensor) -> Tensor:
        wide = torch.promote_types(spliced.dtype, torch.float32)
        n, gradient = len(spliced), torch.empty_like(spliced)
        total = torch.zeros((), dtype=wide, device=spliced.device)
        for start in range(0, n, ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            log_p, log_q = (logits[part].to(wide).log_softmax(-1) for logits in (clean, spliced))
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum()
            gradient[part] = (log_q.exp() - p) / n
        ctx.save_for_backward(gradient)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * grads[0].to(gradient.dtype)
