"""One training step by several processes: the step of autograd.py, with what they tell each other."""

from __future__ import annotations

import torch

from ...shared.cache.batch import Batch
from ...shared.coders.configs.base import StepContext
from ..parallel.base import Sharing
from .objective import Terms
from .result import StepResult, measured, step_batch
from .trainee import Trainee
from .update import refuse_nonfinite, update


def parallel_train_step(trainee: Trainee, sharing: Sharing, rows: Batch, measure: bool) -> StepResult:
    """`train_step`, in which every process of the run takes part; all of them return the same.

    Args:
        rows: the whole batch, the same in every process.
    """
    coder, config = trainee.coder, trainee.config
    step = trainee.step + 1
    with sharing.step(rows) as own:
        coder.begin_step(StepContext(config.seed, step, trainee.total_steps, own.position > 0))
        batch = step_batch(trainee, own, step)
        codes = coder.encode_normalised(batch.u)
        values = coder.losses(batch.u, batch.t, codes)
        sum(values.values(), start=batch.t.new_zeros(())).backward()  # type: ignore[no-untyped-call]
        whole_values, whole_codes = sharing.losses(values), sharing.codes(codes)
    trained = [parameter for parameter in coder.parameters() if parameter.grad is not None]
    sharing.gradients(trained)
    coder.project_gradients()
    norm = sharing.norm(trained)
    terms = Terms(torch.stack([*whole_values.values()]).sum(), whole_values, {})
    whole = step_batch(trainee, rows, step)
    refuse_nonfinite(trainee, whole, terms, norm)
    measures = measured(trainee, whole, whole_codes) if measure else {}
    lr = update(trainee, trained, norm, step)
    coder.after_step(whole_codes)

    trainee.advance(terms, len(rows))
    return StepResult(terms, norm, lr, lambda: whole_codes, measures)
