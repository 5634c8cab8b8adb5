"""Matryoshka: one selection of latents, decoded by nested prefixes of the dictionary.

Bussmann et al. 2025, arXiv 2503.17547; random prefixes: Nabeshima 2024, "Matryoshka Sparse Autoencoders".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Literal

import numpy as np
import torch

from .base import CoderConfig
from .batchtopk import BatchTopK, BatchTopKConfig

DEFAULT_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1 / 8)
"""Shares of the dictionary when `groups` is null: early latents carry general features, later ones the detail."""


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchTopKConfig):
    """Matryoshka over TopK or BatchTopK."""

    architecture: Literal["matryoshka"] = "matryoshka"  # type: ignore[assignment]
    k: int = 16
    """Latents kept per row; with `selection: batchtopk`, on average over a batch."""
    selection: Literal["topk", "batchtopk"] = "topk"
    """How latents are selected. threshold_ema and threshold_warmup apply to batchtopk."""
    prefixes: Literal["fixed", "random"] = "fixed"
    """Prefixes from `groups`, or drawn at random for every step."""
    groups: tuple[int, ...] | None = None
    """Group sizes, not prefixes; they sum to latents. Null: 1/8, 1/4, 1/2, 1/8 of latents. Must be null for random
    prefixes; reports then use those shares."""
    n_prefixes: int = 10
    """Random: prefixes per step; the last is the whole dictionary."""
    prefix_power: float = 0.5
    """Random: the probability that a prefix is longer than m falls as m^-power; larger values give shorter prefixes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.group_sizes()
        if self.prefixes == "random" and self.groups is not None:
            raise ValueError(f"groups {list(sizes)} are fixed prefixes: with prefixes: random, groups must be null")
        if min(sizes, default=0) < 1:
            raise ValueError(f"every group needs at least one latent; groups are {list(sizes)}")
        if sum(sizes) != self.latents:
            raise ValueError(
                f"groups {list(sizes)} sum to {sum(sizes)}, but latents is {self.latents}: "
                "groups are sizes, not cumulative prefixes, and must sum to latents"
            )
        if self.prefixes == "random" and not 1 <= self.n_prefixes <= self.latents:
            raise ValueError(f"n_prefixes must be between 1 and latents = {self.latents}, not {self.n_prefixes}")
        if self.prefix_power <= 0:
            raise ValueError(f"prefix_power must be positive, not {self.prefix_power}")

    @property
    def selects_over(self) -> Literal["row", "batch"]:
        return "batch" if self.selection == "batchtopk" else "row"

    def group_sizes(self) -> tuple[int, ...]:
        """The sizes in use: `groups`, or the default fractions of latents (the rounding goes to the largest group)."""
        if self.groups is not None:
            return tuple(self.groups)
        sizes = [int(self.latents * share) for share in DEFAULT_FRACTIONS]
        sizes[2] += self.latents - sum(sizes)
        return tuple(sizes)


class Matryoshka(BatchTopK):
    """The loss is the mean over prefixes m_1 < … < m_G = F of the squared error of Σ_{i < m_g} z_i w_i + b.

    Random prefixes apply in training mode; in evaluation mode `prefixes` are the groups.
    """

    config_class: ClassVar[type[CoderConfig]] = MatryoshkaConfig
    config: MatryoshkaConfig

    def __init__(
        self, config: CoderConfig, d_in: int, d_out: int, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        self._groups = tuple(accumulate(self.config.group_sizes()))
        self._drawn: tuple[int, ...] | None = None
        self.begin_step(seed=0, step=0)

    @property
    def prefixes(self) -> tuple[int, ...]:
        return self._drawn if self.training and self._drawn is not None else self._groups

    def begin_step(self, seed: int, step: int) -> None:
        c = self.config
        if c.prefixes == "random":
            self._drawn = draw_prefixes(c.latents, c.n_prefixes, c.prefix_power, seed, step)


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
