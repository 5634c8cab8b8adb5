"""The end of a step: a gradient that is not finite is refused, any other moves the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...shared.coders import Coder
from ...shared.errors import PipelineError
from ..penalties import StepBatch
from .objective import Terms
from .trainee import Trainee


def refuse_nonfinite(trainee: Trainee, batch: StepBatch, terms: Terms, norm: Tensor) -> None:
    """Raises PipelineError where the loss or the norm of its gradient is not finite."""
    if not bool(torch.isfinite(terms.total.detach() + norm)):
        raise PipelineError(*culprit(trainee, batch, terms))


def update(trainee: Trainee, trained: Sequence[nn.Parameter], norm: Tensor, step: int) -> float:
    """Clips the gradient, moves the parameters, and returns the learning rate.

    Args:
        trained: the parameters with a gradient.
        norm: of the whole gradient.
    """
    if trainee.config.optimizer.grad_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, trainee.config.optimizer.grad_clip, norm)
    lr = trainee.learning_rate(step)
    for group in trainee.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    trainee.coder.project_parameters()
    return lr


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
            hint = f"pipeline verify {trainee.config.cache}   (the cache itself holds values that are not finite)"
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
