"""The base of penalties: the batch they receive, the value they return, the settings they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...shared.cache.batch import Batch
from ...shared.coders import Coder, Codes
from .configs.base import PenaltyConfig


@dataclass(frozen=True)
class StepBatch:
    """The rows of one training step, as the losses see them.

    Attributes:
        u: [B, d_in] normalised inputs.
        t: [B, d_out] normalised targets.
        rows: tokens, positions, documents and flags of the rows.
        step: number of this update, from 1.
        total_steps: of the whole run.
        generator: the run's own random numbers (CPU); part of its checkpoints.
        ctx: tokens in a sequence: positions run from 0 to ctx − 1.
        massive: [B] bool, rows that are massive at the source or the target; None: none is.
        massive_input: [B] bool, those that are massive at the source.
    """

    u: Tensor
    t: Tensor
    rows: Batch
    step: int
    total_steps: int
    generator: torch.Generator
    ctx: int
    massive: Tensor | None = None
    massive_input: Tensor | None = None

    @property
    def position(self) -> Tensor:
        """[B] position in the sequence."""
        return self.rows.position

    @property
    def rest(self) -> Tensor:
        """[B] bool: the ordinary rows. At position 0 one constant vector would dominate every statistic, and in massive
        rows a few dimensions would."""
        rest = self.rows.position > 0
        return rest if self.massive is None else rest & ~self.massive


@dataclass(frozen=True)
class Merges:
    """Duplicates to merge: keep, gone [m] latents, each of `gone` once and none of them in `keep`; ratio [m] the codes
    of the one that goes, in those of its keeper."""

    keep: Tensor
    gone: Tensor
    ratio: Tensor


class Penalty(ABC):
    """A differentiable scalar that training adds to the loss, called as penalty(batch, coder, codes).

    The value is unweighted, and a mean, not a sum, so that a weight means the same at every batch and dictionary
    size.
    """

    config_class: ClassVar[type[PenaltyConfig]]

    def __init__(self, config: PenaltyConfig) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        """The penalty of this batch: a scalar with gradients to the coder's parameters, directly or through the
        codes."""

    def metrics(self) -> dict[str, float]:
        """Further numbers of the last call to log, beside the value itself.

        Called only when a line is logged, so keep device tensors until then: reading one makes the host wait.
        """
        return {}

    def take_merges(self) -> Merges | None:
        """Duplicates that the last call found to be one latent; asked after each step where `train.reseed` is set."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs to be bit-identical (moving averages and the like)."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (most penalties have none)
        """Restore what `state` returned."""
