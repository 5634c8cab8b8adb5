"""One training step by autograd."""

from __future__ import annotations

import torch

from ...shared.cache.batch import Batch
from ...shared.coders.configs.base import StepContext
from .fused import fused_train_step
from .parallel import parallel_train_step
from .result import StepResult, measured, step_batch
from .trainee import Trainee
from .update import refuse_nonfinite, update


def train_step(trainee: Trainee, rows: Batch, measure: bool = False) -> StepResult:
    """Loss, gradient, update: by the fused step where the trainee has one, by autograd otherwise; shared out where
    several processes train it.

    Args:
        measure: also compute the figures of this batch (`StepResult.measures`).

    Raises:
        PipelineError: the loss or the gradient is not finite; nothing has been updated.
    """
    if trainee.fused is not None:
        return fused_train_step(trainee, rows, measure)
    if trainee.sharing is not None:
        return parallel_train_step(trainee, trainee.sharing, rows, measure)
    coder, config = trainee.coder, trainee.config
    step = trainee.step + 1
    coder.begin_step(StepContext(config.seed, step, trainee.total_steps, rows.position > 0))
    batch = step_batch(trainee, rows, step)

    codes = coder.encode_normalised(batch.u)
    terms = trainee.objective(batch, coder, codes)
    terms.total.backward()  # type: ignore[no-untyped-call]
    coder.project_gradients()
    trained = [parameter for parameter in coder.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    refuse_nonfinite(trainee, batch, terms, norm)
    measures = measured(trainee, batch, codes) if measure else {}
    lr = update(trainee, trained, norm, step)
    coder.after_step(codes)

    trainee.advance(terms, len(rows))
    return StepResult(terms, norm, lr, codes.detach, measures)
