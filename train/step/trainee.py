"""One coder in training: its parameters, loss, optimizer and everything else that a step reads or changes."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...shared.cache.batch import Batch
from ...shared.coders import Coder
from ..config import TrainConfig
from ..monitors.watch import Watch
from ..parallel.base import Sharing
from ..samples.collect import SampleCollector
from .clock import StepClock
from .objective import Objective, Terms

if TYPE_CHECKING:
    from ..kernels.fused_step import FusedStep

LOSS_EMA = 0.99
"""Decay of the moving averages of the loss and of its terms."""


@dataclass(frozen=True)
class MassiveRows:
    """Massive rows of one site.

    Attributes:
        mask: [n_rows] bool, all rows of the cache.
        threshold: the norm beyond which a row can be massive.
        width: of the site.
    """

    mask: Tensor
    threshold: float
    width: int


@dataclass
class Trainee:
    """Mutable state of one run, between steps.

    Attributes:
        step: updates done so far.
        tokens: rows trained on so far.
        averages: moving average of the loss ("loss") and of each of its terms; empty before the first step.
        clock: measures the time of this coder's own steps.
        ctx: tokens in a sequence of the cache.
        massive: site → which rows of the cache are massive in each of its parts.
        balance: [d_out] float64 what a joint target is multiplied by before its parts are added up in one figure; None
            for one site.
        rest_mean, all_mean: [d_out] float64 mean of the target's rows in the cache, excluding and including position 0.
        untrained: the evaluation before the first step.
        average: moving average of the parameters, with `ema`.
        watch: its monitors; None: it has none.
        samples: its strongest activations so far; None: none are collected.
        fused: the fused step; None: autograd trains this coder.
        sharing: how several processes share out its steps; None: one process trains it.
        reseeded, merged: latents re-seeded so far, and duplicates merged.
    """

    config: TrainConfig
    coder: Coder
    objective: Objective
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    total_steps: int
    ctx: int
    massive: Mapping[str, tuple[MassiveRows, ...]]
    rest_mean: Tensor
    all_mean: Tensor
    clock: StepClock
    step: int = 0
    tokens: int = 0
    averages: dict[str, Tensor] = field(default_factory=dict)
    untrained: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    watch: Watch | None = None
    samples: SampleCollector | None = None
    fused: FusedStep | None = None
    balance: Tensor | None = None
    sharing: Sharing | None = None
    reseeded: int = 0
    merged: int = 0

    def inputs(self, rows: Batch) -> tuple[Tensor, Tensor]:
        """Source [B, d_in] and target [B, d_out] activations of a batch; massive rows scaled to the threshold's norm
        where the sampler clips them."""
        source, target = (self._clipped(rows, site) for site in (self.config.source, self.config.target_site))
        return source, target

    def massive_rows(self, rows: Batch) -> tuple[Tensor, Tensor]:
        """(at the source or the target, at the source): which rows are massive, [B] bool each."""
        at = {site: [one.mask[rows.row.long()] for one in parts] for site, parts in self.massive.items()}
        source = functools.reduce(torch.logical_or, at.pop(self.config.source))
        return functools.reduce(torch.logical_or, itertools.chain(*at.values()), source), source

    def _clipped(self, rows: Batch, site: str) -> Tensor:
        x = rows.acts[site]
        if self.config.sampler.massive != "clip":
            return x
        massive = self.massive[site]
        pieces = torch.split(x, [one.width for one in massive], dim=1)
        clipped = [_clip(piece, one, rows.row.long()) for piece, one in zip(pieces, massive, strict=True)]
        return clipped[0] if len(clipped) == 1 else torch.cat(clipped, dim=1)

    def advance(self, terms: Terms, n_rows: int) -> None:
        """Count an update. A term that this step did not compute, absent or NaN, keeps its average."""
        for name, value in {"loss": terms.total, **terms.values}.items():
            now, before = value.detach(), self.averages.get(name)
            if before is None:
                self.averages[name] = now.clone()
                continue
            mean = torch.lerp(now, before, LOSS_EMA)
            if name == "aux":  # only the device knows whether it was computed
                mean = torch.where(now.isnan(), before, torch.where(before.isnan(), now, mean))
            self.averages[name] = mean
        self.step, self.tokens = self.step + 1, self.tokens + n_rows
        if self.config.ema is not None:
            self._average(self.config.ema)

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        """Σ_j decay^(n−j) w_j / Σ_j decay^(n−j) over the updates 1 … n: the first weights do not linger."""
        if not self.average:
            self.average = {name: torch.zeros_like(p) for name, p in self.coder.named_parameters()}
        share = (1 - decay) / (1 - decay**self.step)
        for name, parameter in self.coder.named_parameters():
            self.average[name].lerp_(parameter, share)

    def averaged(self) -> Coder | None:
        """The coder with the moving average of the weights (unit rows rescaled to length 1); None without one."""
        if self.config.ema is None:
            return None
        with torch.no_grad():
            coder = copy.deepcopy(self.coder)
            for name, parameter in coder.named_parameters():
                parameter.copy_(self.average[name])
            coder.project_parameters()
        return coder

    def whole_coder(self) -> Coder:
        """The coder with all of its latents; of several processes only the first has it."""
        return self.coder if self.sharing is None else self.sharing.whole_coder()

    def learning_rate(self, step: int) -> float:
        """The rate of update number `step`, from 1."""
        return self.config.optimizer.rate(step, self.total_steps, self.coder.n_latents)


def _clip(x: Tensor, massive: MassiveRows, rows: Tensor) -> Tensor:
    """Rows x [B, d] of one site, its massive ones scaled to the threshold's norm; `rows` [B] are their numbers."""
    factor = massive.threshold / x.float().norm(dim=1).clamp_min(massive.threshold)
    return torch.where(massive.mask[rows][:, None], x * factor[:, None].to(x.dtype), x)
