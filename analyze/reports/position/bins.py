"""Bins of the sequence: position by position for the profile, ten equal stretches for the tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.positions import position_bins

PROFILE_BINS = 1020
"""Up to this many positions after 0 have a bin each; more are cut into this many equal bins (a multiple of ten)."""


def profile_bins(ctx: int) -> NDArray[np.int32]:
    """Bin of each position [ctx]: 0 for position 0, then one bin for each position, or PROFILE_BINS equal ones."""
    return coarse_bins(ctx, PROFILE_BINS)


def coarse_bins(n_profile: int, bins: int) -> NDArray[np.int32]:
    """Bin of each profile bin [n_profile]: 0 for position 0, then `bins` equal ones (at most one for each position)."""
    bins = min(bins, max(1, n_profile - 1))
    return position_bins(np.arange(n_profile, dtype=np.int64), n_profile, bins).astype(np.int32)


@dataclass(frozen=True)
class Bins:
    """Two levels of bins, nested: each coarse bin is a whole number of profile bins. Bin 0 is position 0 in both.

    Attributes:
        profile_of: [ctx] profile bin of each position.
        coarse_of: [n_profile] coarse bin of each profile bin.
    """

    profile_of: NDArray[np.int32]
    coarse_of: NDArray[np.int32]

    @classmethod
    def of(cls, ctx: int, bins: int) -> Bins:
        """For sequences of `ctx` tokens, with `bins` coarse bins after position 0."""
        profile = profile_bins(ctx)
        return cls(profile, coarse_bins(int(profile[-1]) + 1, bins))

    @property
    def n_profile(self) -> int:
        """Profile bins, position 0 included."""
        return len(self.coarse_of)

    @property
    def n_coarse(self) -> int:
        """Coarse bins, position 0 included."""
        return int(self.coarse_of[-1]) + 1

    @cached_property
    def coarse_of_position(self) -> NDArray[np.int32]:
        """[ctx] coarse bin of each position."""
        return self.coarse_of[self.profile_of]

    @cached_property
    def profile_starts(self) -> NDArray[np.int64]:
        """[n_profile] first position of each profile bin."""
        return np.searchsorted(self.profile_of, np.arange(self.n_profile))

    @cached_property
    def names(self) -> list[str]:
        """Names of the coarse bins: "0", "1–7", …"""
        names = []
        for b in range(self.n_coarse):
            inside = np.flatnonzero(self.coarse_of_position == b)
            names.append(str(inside[0]) if len(inside) == 1 else f"{inside[0]}–{inside[-1]}")
        return names
