"""What one step computed: its loss terms, its gradient norm, its codes, and the figures of its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...shared.cache.batch import Batch
from ...shared.coders import Codes
from ..penalties import StepBatch
from .objective import Terms
from .trainee import Trainee


@dataclass(frozen=True)
class StepResult:
    """What one step computed.

    Attributes:
        terms: its loss terms.
        grad_norm: norm of its gradient before clipping; NaN where nothing needed it (train/kernels/update.py).
        lr: the learning rate of its update.
        codes: returns its codes, from before the update; valid until the next step.
        measures: figures of its batch, where they were requested (`measured`); otherwise empty.
    """

    terms: Terms
    grad_norm: Tensor
    lr: float
    codes: Callable[[], Codes]
    measures: dict[str, float | None]


def step_batch(trainee: Trainee, rows: Batch, step: int) -> StepBatch:
    """What the losses of a step see of its rows."""
    x, y = trainee.inputs(rows)
    coder = trainee.coder
    massive, massive_input = trainee.massive_rows(rows)
    return StepBatch(
        u=coder.normalise_input(x),
        t=coder.normalise_target(y),
        rows=rows,
        step=step,
        total_steps=trainee.total_steps,
        generator=trainee.generator,
        ctx=trainee.ctx,
        massive=massive,
        massive_input=massive_input,
    )


@torch.no_grad()
def measured(trainee: Trainee, batch: StepBatch, codes: Codes) -> dict[str, float | None]:
    """Figures of a batch, in raw activation space and float64.

    FVU excluding and including position 0, its mean over dimensions (`fvu_dims`), mean L0, how many latents fired, and
    how many are dead. Of a joint target, the parts' errors count in units of their variance (shared/cache/joint.py).
    """
    scale = 1.0 if trainee.balance is None else trainee.balance
    y = trainee.inputs(batch.rows)[1].to(torch.float64)
    y_hat = trainee.coder.denormalise_target(trainee.coder.decode_normalised(codes, batch.u))
    error = ((y - y_hat.to(torch.float64)) * scale).square()
    rest = batch.position > 0
    variance = ((y[rest] - trainee.rest_mean) * scale).square().sum(dim=0)
    error_rest = error[rest].sum(dim=0)
    varies = variance > 0
    return {
        "fvu": _ratio(error_rest.sum(), variance.sum()),
        "fvu_with_bos": _ratio(error.sum(), ((y - trainee.all_mean) * scale).square().sum()),
        "fvu_dims": _ratio((error_rest[varies] / variance[varies]).sum(), varies.sum()),
        "l0": float(codes.l0().to(torch.float64).mean()),
        "active": int(codes.fired().sum()),
        "dead": trainee.coder.n_dead,
    }


def _ratio(numerator: Tensor, denominator: Tensor) -> float | None:
    return float(numerator / denominator) if float(denominator) > 0 else None
