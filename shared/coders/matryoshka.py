"""Matryoshka: one TopK selection, reconstructed by nested prefixes of the dictionary.

Bussmann et al. 2025, arXiv 2503.17547.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Literal

from shared.coders.base import CoderConfig
from shared.coders.topk import TopK, TopKConfig

DEFAULT_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1 / 8)
"""Shares of the dictionary when `groups` is null: early latents carry general features, later ones the detail."""


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(TopKConfig):
    """Matryoshka over TopK."""

    architecture: Literal["matryoshka"] = "matryoshka"  # type: ignore[assignment]
    groups: tuple[int, ...] | None = None
    """Group sizes, not prefixes; they sum to latents. Null: 1/8, 1/4, 1/2, 1/8 of latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.group_sizes()
        if min(sizes, default=0) < 1:
            raise ValueError(f"every group needs at least one latent; groups are {list(sizes)}")
        if sum(sizes) != self.latents:
            raise ValueError(
                f"groups {list(sizes)} sum to {sum(sizes)}, but latents is {self.latents}: "
                "groups are sizes, not cumulative prefixes, and must sum to latents"
            )

    def group_sizes(self) -> tuple[int, ...]:
        """The sizes in use: `groups`, or the default fractions of latents (the rounding goes to the largest group)."""
        if self.groups is not None:
            return tuple(self.groups)
        sizes = [int(self.latents * share) for share in DEFAULT_FRACTIONS]
        sizes[2] += self.latents - sum(sizes)
        return tuple(sizes)


class Matryoshka(TopK):
    """The loss is the mean over prefixes m_1 < … < m_G = F of the squared error of Σ_{i < m_g} z_i w_i + b."""

    config_class: ClassVar[type[CoderConfig]] = MatryoshkaConfig
    config: MatryoshkaConfig

    @property
    def prefixes(self) -> tuple[int, ...]:
        return tuple(accumulate(self.config.group_sizes()))
