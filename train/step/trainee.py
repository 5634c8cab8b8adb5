"""One coder in training: its parameters, loss, optimizer, schedule and everything else a step reads or moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...shared.cache import Cache
from ...shared.coders import Coder, build_coder
from ..config import TrainConfig
from ..monitors.watch import Watch
from ..samples.collect import SampleCollector
from .clock import StepClock
from .objective import Objective

if TYPE_CHECKING:
    from ..kernels.fused_step import FusedStep

LOSS_EMA = 0.99
"""Decay of the moving average of the loss."""

DEAD_AFTER = 10_000_000
"""Tokens without firing after which a latent counts as dead, where neither an epoch nor half of the run is shorter: a
run of one epoch would end before any could."""

MAX_BOS_SHARE = 0.2
"""Largest share of samples at position 0, where neither their settings nor the sampler say another."""


@dataclass
class Trainee:
    """Mutable state of one run, between steps.

    Attributes:
        step: updates done so far.
        tokens: rows trained on so far.
        loss_ema: moving average of the loss; None before the first step.
        clock: the time of this coder's own steps.
        ctx: tokens in a sequence of the cache.
        bos_shift: [d_out] what separates the mean of all rows from that of the rows without position 0, normalised.
        untrained: what evaluation said before the first step.
        watch: its monitors; None: nothing is looked at.
        samples: its strongest activations so far; None: none are kept.
        fused: the fused step, where it trains this coder; None: autograd does.
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


def new_trainee(
    config: TrainConfig, cache: Cache, total_steps: int, rows_per_epoch: int, device: torch.device
) -> Trainee:
    """A coder at its start: initial weights from the seed, normalisation from the cache.

    Raises:
        UsageError: `train.fused: on`, where the fused step cannot train it.
    """
    from .fused import fused_step_for

    source, target = cache.stats(config.source), cache.stats(config.target_site)
    generator = torch.Generator().manual_seed(config.seed)
    coder = build_coder(
        config.coder,
        cache.sites[config.source].width,
        cache.sites[config.target_site].width,
        tied=config.source == config.target_site,
        generator=generator,
    )
    coder.set_normalisation(
        *(torch.from_numpy(v) for v in (source.rest.mean, source.rest.var)),
        *(torch.from_numpy(v) for v in (target.rest.mean, target.rest.var)),
    )
    shift = (torch.from_numpy(target.all.mean - target.rest.mean) / float(coder.target_scale)).to(coder.w_dec.dtype)
    half = max(1, total_steps * config.data.batch_size // 2)
    coder.dead_after = config.dead_after or min(DEAD_AFTER, rows_per_epoch, half)
    coder.selection_dtype = torch.bfloat16 if config.precision == "bfloat16" else None
    if "w_dec" in config.freeze:
        coder.randomise_decoder(generator)
    for name in config.freeze:
        parameter = getattr(coder, name)
        if parameter is not None:
            parameter.requires_grad_(False)
    coder.to(device).train()
    optimizer = torch.optim.Adam(
        [parameter for parameter in coder.parameters() if parameter.requires_grad],
        lr=0.0,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        fused=True,
    )
    objective = Objective(config.penalties)
    trainee = Trainee(
        config, coder, objective, optimizer, generator, total_steps, cache.ctx, shift.to(device), StepClock(device)
    )
    if config.monitors:
        trainee.watch = Watch(config.monitors, config.monitor_every, config.monitor_window, total_steps, cache.ctx)
    if config.samples is not None:
        share = getattr(config.sampler, "max_bos_share", MAX_BOS_SHARE)
        trainee.samples = SampleCollector(config.samples, cache, coder.n_latents, total_steps, share)
    trainee.fused = fused_step_for(trainee, device)
    return trainee
