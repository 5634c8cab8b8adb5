"""One training step by autograd, and what to report when it stops being finite."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.cache.batch import Batch
from ...shared.coders import Coder
from ...shared.coders.configs.base import StepContext
from ...shared.errors import PipelineError
from ..penalties import StepBatch
from .fused import fused_train_step
from .objective import Terms
from .result import StepResult, measured, step_batch
from .trainee import Trainee


def train_step(trainee: Trainee, rows: Batch, measure: bool = False) -> StepResult:
    """Loss, gradient, update: by the fused step where the trainee has one, by autograd otherwise.

    Args:
        measure: also compute the figures of this batch (`StepResult.measures`).

    Raises:
        PipelineError: the loss or the gradient is not finite; nothing has been updated.
    """
    if trainee.fused is not None:
        return fused_train_step(trainee, rows, measure)
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
    if not bool(torch.isfinite(terms.total.detach() + norm)):
        raise PipelineError(*culprit(trainee, batch, terms))
    if config.optimizer.grad_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, config.optimizer.grad_clip, norm)
    measures: dict[str, float | None] = {}
    if measure:
        measures = measured(trainee, batch, codes)
    lr = trainee.learning_rate(step)
    for group in trainee.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    coder.project_parameters()
    coder.after_step(codes)

    trainee.advance(terms, len(rows))
    return StepResult(terms, norm, lr, codes.detach, measures)


def culprit(trainee: Trainee, batch: StepBatch, terms: Terms) -> tuple[str, str]:
    """The terms, rows and parameters that are not finite: (what was found, what to try)."""
    found = []
    for name, value in terms.values.items():
        if not bool(torch.isfinite(value)):
            found.append(f"loss term {name} is {float(value)}")
    if not found:
        found.append(f"the loss is {float(terms.total.detach()):.6g}, its gradient is not finite")
    hint = "lower train.optimizer.lr or the weight of the newest penalty, and train under another --name"
    for site, name in ((trainee.config.source, "u"), (trainee.config.target_site, "t")):
        bad = ~torch.isfinite(getattr(batch, name)).all(dim=1)
        if bool(bad.any()):
            row = int(batch.rows.row[bad][0])
            found.append(f"{int(bad.sum())} of {len(bad)} rows of {site} are not finite (the first is cache row {row})")
            hint = f"pipeline verify {trainee.config.cache}: the cache itself holds values that are not finite"
    coder: Coder = trainee.coder
    for name, parameter in coder.named_parameters():
        found += _bad_rows(name, parameter.detach())
        if parameter.grad is not None:
            found += _bad_rows(f"the gradient of {name}", parameter.grad)
    return f"run {trainee.config.run_name}, step {batch.step}: " + "; ".join(found), hint


def _bad_rows(name: str, values: Tensor) -> list[str]:
    finite = torch.isfinite(values)
    bad = (~(finite if values.dim() == 1 else finite.flatten(1).all(dim=1))).nonzero().squeeze(1)
    if not len(bad):
        return []
    span = f"row {int(bad[0])}" if len(bad) == 1 else f"{len(bad)} of {len(values)} rows, {int(bad[0])}–{int(bad[-1])}"
    return [f"{name} is not finite in {span}"]
