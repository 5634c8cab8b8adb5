"""What one step computed: its loss terms, its gradient norm, its codes, and the figures of its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
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


@torch.no_grad()
def row_errors(coder: Coder, batch: StepBatch, codes: Codes) -> Tensor:
    """Squared error of each row of the whole reconstruction, [B] float64."""
    return (batch.t - coder.decode_normalised(codes, batch.u)).square().sum(dim=1, dtype=torch.float64)


@torch.no_grad()
def measured(
    trainee: Trainee, *, t: Tensor, position: Tensor, error: Tensor, l0: Tensor, fired: Tensor
) -> dict[str, float | None]:
    """FVU of a batch excluding and including position 0, its mean L0 (all in float64), how many latents fired in it,
    and how many are dead.

    In normalised space the target's mean over the rows excluding position 0 is zero, so Σ‖t‖² is their variance.

    Args:
        t: [B, d_out] normalised targets.
        position: [B] in the sequence.
        error: [B] squared errors, float64.
        l0: [B].
        fired: [F] bool.
    """
    rest = position > 0
    variance = t.square().sum(dim=1, dtype=torch.float64)
    variance_all = (t - trainee.bos_shift).square().sum(dim=1, dtype=torch.float64)
    return {
        "fvu": _ratio(error[rest].sum(), variance[rest].sum()),
        "fvu_with_bos": _ratio(error.sum(), variance_all.sum()),
        "l0": float(l0.to(torch.float64).mean()),
        "active": int(fired.sum()),
        "dead": int(trainee.coder.dead.sum()),
    }


def _ratio(numerator: Tensor, denominator: Tensor) -> float | None:
    return float(numerator / denominator) if float(denominator) > 0 else None
