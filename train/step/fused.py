"""Training by the fused step (train/kernels) instead of autograd: when it is used, and one step with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...shared.cache.batch import Batch
from ...shared.coders import Coder, Codes
from ...shared.coders.configs.base import StepContext
from ...shared.errors import PipelineError, UsageError
from ..config import TrainConfig
from ..kernels import unavailable
from .objective import Terms
from .result import StepResult, measured, step_batch
from .trainee import Trainee

if TYPE_CHECKING:
    from ..kernels.fused_step import FusedStep, Penalise


def refusal(config: TrainConfig, coder: Coder, device: torch.device) -> str | None:
    """Why the fused step does not train this run, or None where it does.

    Raises:
        UsageError: `train.fused: on`, but the fused step cannot train this coder.
    """
    if config.fused == "off":
        return "train.fused is off"
    if config.fused == "auto" and device.type != "cuda":
        return f"the device is {device.type}"
    reason = unavailable(device)
    if reason is None:
        from ..kernels.fused_step import refusal as refused

        reason = refused(coder) if not config.freeze else f"frozen parameters ({', '.join(config.freeze)})"
    if reason is not None and config.fused == "on":
        raise UsageError(
            f"train.fused: on, but the fused step cannot train run {config.run_name}: {reason}", "set train.fused: auto"
        )
    return reason


def fused_step_for(config: TrainConfig, coder: Coder, optimizer: torch.optim.Adam) -> FusedStep | None:
    """The fused step of a coder on its device, or None where autograd trains it.

    Raises:
        UsageError: `train.fused: on`, but the fused step cannot train this coder.
    """
    if refusal(config, coder, coder.b_enc.device) is not None:
        return None
    from ..kernels.fused_step import FusedStep

    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    return FusedStep(coder, optimizer, grad_clip=config.optimizer.grad_clip, dtype=dtype)


def fused_train_step(trainee: Trainee, rows: Batch, measure: bool) -> StepResult:
    """`train_step` by the fused step.

    A gradient that is not finite moves nothing, in this step or a later one. Reading that from the device makes the
    host wait, so it is checked only at steps that are measured, and before a checkpoint (train/runs/checkpoint.py).

    Raises:
        PipelineError: a gradient since the last such step was not finite.
    """
    fused, coder, config = trainee.fused, trainee.coder, trainee.config
    assert fused is not None
    step = trainee.step + 1
    coder.begin_step(StepContext(config.seed, step, trainee.total_steps, rows.position > 0))
    lr = trainee.learning_rate(step)
    x, y = rows.acts[config.source], rows.acts[config.target_site]
    values: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    penalties = torch.zeros((), device=x.device)
    measures: dict[str, float | None] = {}
    if measure:  # before the kernels move the weights
        batch = step_batch(trainee, rows, step)
        measures = measured(trainee, batch, coder.encode_normalised(batch.u))

    def penalise(codes: Codes) -> Tensor | None:
        nonlocal penalties
        batch = step_batch(trainee, rows, step)
        total = trainee.objective.penalise(batch, coder, codes, values, weights)
        if total is not None:
            penalties = total.detach()
        return total

    due: Penalise | None = penalise if trainee.objective.due(step) else None
    result = fused.step_raw(x, y, lr, penalise=due, want_norm=measure)
    if measure and not fused.finite:
        raise PipelineError(*not_finite(trainee, step))

    own = {"reconstruction": result.reconstruction.clone()}
    if result.aux is not None:
        own["aux"] = result.aux.clone()
    total = sum(own.values(), start=penalties)
    if result.aux is not None:  # without dead latents AuxK is no term of this step, as by autograd
        own["aux"] = torch.where(result.n_dead > 0, own["aux"], torch.nan)
    terms = Terms(total, own | values, weights)
    trainee.advance(terms, len(rows))
    return StepResult(terms, result.grad_norm.clone(), lr, fused.codes, measures)


def not_finite(trainee: Trainee, step: int) -> tuple[str, str]:
    """The error about a gradient that is not finite: (what was found, what to try)."""
    return (
        f"run {trainee.config.run_name}: at or before step {step} the loss or its gradient was not finite; "
        "the coder has not moved since then, and the run stays at its last checkpoint",
        "pipeline train --resume --set train.fused=off   (names the step, the term and the rows)",
    )
