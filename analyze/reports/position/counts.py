"""What the pass over a cache counts for the position report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...stream.keep import Keeper
from .bins import Bins
from .config import PositionConfig


@dataclass(frozen=True)
class MassiveCounts:
    """What massive rows add to `Counts.rows`, `Counts.firings` and `Counts.shifted`, in the same shapes."""

    rows: NDArray[np.int64]
    firings: NDArray[np.int64]
    shifted: NDArray[np.int32]

    @classmethod
    def zeros(cls, n_latents: int, bins: Bins, config: PositionConfig) -> MassiveCounts:
        """Before the first shard."""
        return cls(
            rows=np.zeros(bins.n_profile, np.int64),
            firings=np.zeros((n_latents, bins.n_profile), np.int64),
            shifted=np.zeros((n_latents, config.shifts * (bins.n_coarse - 1)), np.int32),
        )

    def merge(self, other: MassiveCounts) -> None:
        """Add what was counted over other rows."""
        for mine, theirs in ((self.rows, other.rows), (self.firings, other.firings), (self.shifted, other.shifted)):
            mine += theirs


@dataclass(frozen=True)
class Counts:
    """Firings by position, observed and after circular shifts. The arrays are added to in place.

    Attributes:
        rows: [n_profile] rows that count in each profile bin.
        firings, sums: [F, n_profile] rows on which each latent fires, and Σ z.
        shifted, shifted_all: [F, shifts · bins] firings in each coarse bin after each shift, excluding position 0 and
            including it.
        top, top_distinct: the largest activations of each latent, repeats included, and each context once.
        massive: the massive rows' part in `rows`, `firings` and `shifted`; None where there are none.
    """

    bins: Bins
    rows: NDArray[np.int64]
    firings: NDArray[np.int64]
    sums: NDArray[np.float64]
    shifted: NDArray[np.int32]
    shifted_all: NDArray[np.int32]
    top: Keeper
    top_distinct: Keeper
    massive: MassiveCounts | None

    @classmethod
    def zeros(cls, n_latents: int, ctx: int, config: PositionConfig, *, massive: bool = False) -> Counts:
        """Before the first shard.

        Args:
            massive: whether there are massive rows to count.
        """
        bins = Bins.of(ctx, config.bins)
        return cls(
            bins=bins,
            rows=np.zeros(bins.n_profile, np.int64),
            firings=np.zeros((n_latents, bins.n_profile), np.int64),
            sums=np.zeros((n_latents, bins.n_profile)),
            shifted=np.zeros((n_latents, config.shifts * (bins.n_coarse - 1)), np.int32),
            shifted_all=np.zeros((n_latents, config.shifts * bins.n_coarse), np.int32),
            top=Keeper(n_latents, config.top),
            top_distinct=Keeper(n_latents, config.top, distinct=True, context=config.context),
            massive=MassiveCounts.zeros(n_latents, bins, config) if massive else None,
        )

    def merge(self, other: Counts) -> None:
        """Add what was counted over other rows."""
        for mine, theirs in (
            (self.rows, other.rows),
            (self.firings, other.firings),
            (self.sums, other.sums),
            (self.shifted, other.shifted),
            (self.shifted_all, other.shifted_all),
        ):
            mine += theirs
        self.top.merge(other.top)
        self.top_distinct.merge(other.top_distinct)
        if self.massive is not None and other.massive is not None:
            self.massive.merge(other.massive)
