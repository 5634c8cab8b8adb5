"""Nested prefixes of a dictionary: the lengths of a step.

Bussmann et al. 2025, arXiv 2503.17547; random prefixes: Nabeshima 2024, "Matryoshka Sparse Autoencoders".
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch

from .base import Coder, Widths
from .configs.base import CoderConfig, StepContext
from .configs.nested import NestedConfig


class Nested(Coder):
    """A coder whose loss is a mean over prefixes m_1 < … < m_G = F of its dictionary.

    Random prefixes apply in training mode; in evaluation mode `prefixes` are the groups.
    """

    config: NestedConfig

    def __init__(
        self, config: CoderConfig, d_in: Widths, d_out: Widths, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        self._groups = tuple(accumulate(self.config.group_sizes()))
        self._drawn: tuple[int, ...] | None = None
        self.begin_step(StepContext())

    @property
    def prefixes(self) -> tuple[int, ...]:
        return self._drawn if self.training and self._drawn is not None else self._groups

    def begin_step(self, context: StepContext) -> None:
        super().begin_step(context)
        c = self.config
        if c.prefixes == "random":
            self._drawn = draw_prefixes(c.latents, c.n_prefixes, c.prefix_power, context.seed, context.step)


def draw_prefixes(n_latents: int, n_prefixes: int, power: float, seed: int, step: int) -> tuple[int, ...]:
    """n_prefixes − 1 distinct lengths below n_latents, ascending, and n_latents itself.

    Each is ⌊X⌋ of a Pareto variable X cut off at F = n_latents, P(X > x) = (x^−p − F^−p)/(1 − F^−p) for 1 ≤ x < F.
    Duplicates are drawn again.

    Args:
        power: p.
        seed, step: determine the lengths.
    """
    uniform = np.random.default_rng((seed % 2**63, step))
    found = {n_latents}
    cut = 1 - float(n_latents) ** -power
    while len(found) < n_prefixes:
        x = (1 - cut * uniform.random()) ** (-1 / power)
        found.add(min(int(x), n_latents))  # rounding may lift X to F, which has been drawn already
    return tuple(sorted(found))
