"""Coders that a penalty makes sparse, and how their L0 is brought to a number that the settings name.

A coefficient says little about the L0 it leads to: that depends on the data, the width and the learning rate. With
`l0_target` the settings say what is wanted, and training finds the rest.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Widths
from .codes import Codes
from .configs.base import CoderConfig
from .configs.sparsity import SparsityConfig
from .dense import DenseCoder

PROPORTIONAL, INTEGRAL = 0.5, 0.05
"""Gains of the controller on log(L0/target), per step: of its change, and of itself. The latter alone would swing,
because a coefficient acts on L0 through tens of updates."""

LEVEL = 0.02
"""By how much, per step and unit of log(L0/target), all pre-activations have to be larger for their latents to fire.
This holds L0 at once, and also where the learning rate has fallen so far that no coefficient moves anything."""

LARGEST_ERROR = 1.0
"""|log(L0/target)| as the controller sees it at most: far from the target the coefficient moves at a constant pace."""


class PenalisedCoder(DenseCoder):
    """A coder with a sparsity penalty, and a controller that moves the penalty's weight until L0 is at its target.

    The weight is coefficient · e^c. After each step, with e = log(L0/target) over the step's rows outside position 0,
    c ← c + P·(e − e₋₁) + I·e: the velocity form of a PI controller. At the same time the level at which latents fire
    rises by LEVEL·e: a step back towards the surface on which L0 is the target. The weight then settles where the
    gradient no longer pulls away from it. A subclass that holds L0 in another way says so in `controlled`.
    """

    config: SparsityConfig

    levelled_by_bias: ClassVar[bool] = True
    """Whether the encoder's bias brings the initial L0 to the target. Were it to begin at half of the latents, the
    controller would wind up a weight that silences them for good."""

    def __init__(
        self, config: CoderConfig, d_in: Widths, d_out: Widths, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        if self.levelled_by_bias and self.config.first_level is not None:
            nn.init.constant_(self.b_enc, -self.config.first_level)
        if self.controlled:
            self.register_buffer("log_pressure", torch.zeros(()))
            self.register_buffer("l0_error", torch.full((), math.nan))

    log_pressure: Tensor
    l0_error: Tensor

    @property
    def controlled(self) -> bool:
        """Whether the controller moves the penalty's weight."""
        return self.config.l0_target is not None

    @property
    def target_l0(self) -> float | None:
        """The L0 that this step aims at."""
        c = self.config
        if c.l0_target is None or c.l0_start is None:
            return c.l0_target
        return self.context.along(c.l0_start, c.l0_target, c.l0_steps)

    @property
    def strength(self) -> Tensor | float:
        """What the coefficient is multiplied by in this step."""
        steps = self.config.sparsity_warmup
        warm = min(1.0, self.context.step / steps) if steps and self.training else 1.0
        return warm * self.log_pressure.exp() if self.controlled else warm

    def counted(self, per_row: Tensor) -> Tensor:
        """Mean of per_row [B, …] over the rows that L0 counts, those outside position 0; of all rows if none is."""
        rows = self.context.counted
        if rows is None:
            return per_row.mean(dim=0)
        weights = torch.where(rows.any(), rows, torch.ones_like(rows)).to(per_row.dtype)
        return weights @ per_row / weights.sum()

    @torch.no_grad()
    def after_step(self, codes: Codes) -> None:
        super().after_step(codes)
        target = self.target_l0
        if not self.controlled or target is None:
            return
        l0 = self.counted(codes.l0().to(self.log_pressure.dtype))
        error = (l0.clamp_min(torch.finfo(l0.dtype).tiny) / target).log().clamp(-LARGEST_ERROR, LARGEST_ERROR)
        change = torch.where(self.l0_error.isnan(), torch.zeros_like(error), error - self.l0_error)
        self.log_pressure.add_(PROPORTIONAL * change + INTEGRAL * error)
        self.l0_error.copy_(error)
        self.raise_level(LEVEL * error)

    def raise_level(self, by: Tensor) -> None:
        """Let a pre-activation have to be larger by `by` for its latent to fire: here, lower the encoder's bias."""
        if self.b_enc.requires_grad:
            self.b_enc.sub_(by)
