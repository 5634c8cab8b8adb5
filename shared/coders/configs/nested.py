"""Settings of nested prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import CoderConfig

DEFAULT_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1 / 8)
"""Shares of the dictionary when `groups` is null: early latents carry general features, later ones the detail."""


@dataclass(frozen=True, kw_only=True)
class NestedConfig(CoderConfig):
    """Settings of nested prefixes, for any architecture."""

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

    def group_sizes(self) -> tuple[int, ...]:
        """The sizes in use: `groups`, or the default fractions of latents (the rounding goes to the largest group)."""
        if self.groups is not None:
            return tuple(self.groups)
        sizes = [int(self.latents * share) for share in DEFAULT_FRACTIONS]
        sizes[2] += self.latents - sum(sizes)
        return tuple(sizes)
