"""One coder in training: its parameters, loss, optimizer and everything else that a step reads or changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...shared.coders import Coder
from ..config import TrainConfig
from ..monitors.watch import Watch
from ..samples.collect import SampleCollector
from .clock import StepClock
from .objective import Objective

if TYPE_CHECKING:
    from ..kernels.fused_step import FusedStep

LOSS_EMA = 0.99
"""Decay of the moving average of the loss."""


@dataclass
class Trainee:
    """Mutable state of one run, between steps.

    Attributes:
        step: updates done so far.
        tokens: rows trained on so far.
        loss_ema: moving average of the loss; None before the first step.
        clock: measures the time of this coder's own steps.
        ctx: tokens in a sequence of the cache.
        bos_shift: [d_out] mean of all rows minus mean of the rows excluding position 0, normalised.
        untrained: the evaluation before the first step.
        watch: its monitors; None: it has none.
        samples: its strongest activations so far; None: none are collected.
        fused: the fused step; None: autograd trains this coder.
    """

    config: TrainConfig
    coder: Coder
    objective: Objective
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    total_steps: int
    ctx: int
    bos_shift: Tensor
    clock: StepClock
    step: int = 0
    tokens: int = 0
    loss_ema: Tensor | None = None
    untrained: dict[str, Any] = field(default_factory=dict)
    watch: Watch | None = None
    samples: SampleCollector | None = None
    fused: FusedStep | None = None

    def advance(self, loss: Tensor, n_rows: int) -> None:
        """Count an update."""
        self.loss_ema = loss if self.loss_ema is None else torch.lerp(loss, self.loss_ema, LOSS_EMA)
        self.step, self.tokens = self.step + 1, self.tokens + n_rows

    def learning_rate(self, step: int) -> float:
        """The rate of update number `step`, from 1."""
        return self.config.optimizer.rate(step, self.total_steps, self.coder.n_latents)
