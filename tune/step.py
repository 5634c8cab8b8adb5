"""One update of end-to-end tuning: the model as it is, the model with the coder, and the loss between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.sequences import inputs_of
from ..models.splice import spliced
from ..shared.coders import Coder, Codes
from ..shared.coders.configs.base import StepContext
from ..shared.errors import PipelineError
from .loss import Terms, balanced, mean_kl
from .plan import TunePlan
from .update import Update


@dataclass
class Tuned:
    """Mutable state of a tuning between steps.

    Attributes:
        step, tokens: updates done, and rows trained on in them.
        seconds: that they took, in all sessions.
    """

    plan: TunePlan
    coder: Coder
    model: nn.Module
    update: Update
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class StepResult:
    """What one update computed."""

    terms: Terms
    grad_norm: Tensor
    lr: float
    l0: Tensor


def tune_step(tuned: Tuned) -> StepResult:
    """The next update.

    Raises:
        PipelineError: the loss or its gradient is not finite; nothing has been updated.
    """
    plan, coder, step = tuned.plan, tuned.coder, tuned.step + 1
    # The schedules of training are at their ends; a fixed coder is as it is in use.
    coder.train(not tuned.update.codes_stay)
    coder.begin_step(StepContext(plan.config.seed, plan.trained_steps + step))
    terms, codes, n_rows = loss_of(tuned, step)
    terms.total.backward()  # type: ignore[no-untyped-call]
    norm = tuned.update.prepare_gradients()
    if not bool(torch.isfinite(terms.total.detach() + norm)):
        found = ", ".join(f"{name} {float(value):.6g}" for name, value in terms.values.items())
        raise PipelineError(
            f"run {plan.path.name}, step {step}: the loss or its gradient is not finite ({found})", "lower tune.lr"
        )
    lr = plan.config.rate(step, plan.steps, coder.n_latents)
    tuned.update.apply(lr)
    if not tuned.update.codes_stay:
        coder.after_step(codes)
    tuned.step, tuned.tokens = step, tuned.tokens + n_rows
    return StepResult(terms, norm, lr, codes.l0().double().mean())


def loss_of(tuned: Tuned, step: int) -> tuple[Terms, Codes, int]:
    """The loss of the sequences of a step, the codes of the rows that the coder replaces, and how many those are."""
    plan, coder, model = tuned.plan, tuned.coder, tuned.model
    cache, sequences, device = plan.cache, plan.sequences(step), coder.w_enc.device
    part = inputs_of(cache, sequences, None, device)
    rows = torch.from_numpy(plan.rows.train.reshape(-1, cache.ctx)[sequences]).to(device)
    with torch.no_grad():
        clean = part.logits(model)[rows]
    held: list[tuple[Tensor, Tensor, Codes]] = []

    def replace(x: Tensor, y: Tensor) -> Tensor:
        u, t = coder.normalise_input(x[rows]), coder.normalise_target(y[rows])
        codes = coder.encode_normalised(u)
        held.append((u, t, codes))
        new = y.clone()
        new[rows] = coder.denormalise_target(coder.decode_normalised(codes, u)).to(y.dtype)
        return new

    with spliced(model, cache.sites[plan.source], cache.sites[plan.target], replace):
        logits = part.logits(model)[rows]
    ((u, t, codes),) = held
    own = coder.losses(u, t, codes)
    if tuned.update.codes_stay:  # a sparsity penalty has nothing to move
        own = {"reconstruction": own["reconstruction"]}
    return balanced(own, mean_kl(clean, logits), plan.config.beta), codes, len(u)
