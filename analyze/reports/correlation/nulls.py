"""Nulls of the correlation report: the latents that are shuffled, and what sorted lists correlate by themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....shared.hashing import mix
from ...stream.keep import Keeper

SORTED_LATENTS = 1000
"""Latents (and draws of the null) whose sorted top values are compared."""


def null_sample(n_latents: int, limit: int) -> NDArray[np.int32]:
    """At most `limit` latents, ascending.

    Chosen by a hash of the latent's number, not by a random generator: every process picks the same ones, so that
    their sums can be merged.
    """
    if n_latents <= limit:
        return np.arange(n_latents, dtype=np.int32)
    order = np.argsort(mix(np.arange(n_latents, dtype=np.uint64)))
    return np.sort(order[:limit]).astype(np.int32)


def sorted_top_correlation(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """ "Correlation" of each pair of latents' sorted top values [m, t]: what makes unrelated latents look alike.

    Two descending lists of three numbers correlate highly whatever they are: the null of independent exponentials has a
    median of 0.956.
    """
    centred = values - values.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1)
    unit = centred[norm > 0] / norm[norm > 0][:, None]
    r: NDArray[np.float64] = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return r


@dataclass(frozen=True)
class SortedTop:
    """The mistaken "correlation" of sorted lists over pairs of latents, and its null from independent exponentials."""

    observed: NDArray[np.float64]
    null: NDArray[np.float64]

    @classmethod
    def of(cls, tops: Keeper, length: int, seed: int) -> SortedTop:
        """From the `length` largest activations of the first latents that have that many."""
        full = np.flatnonzero(tops.kept >= length)[:SORTED_LATENTS]
        rng = np.random.default_rng(seed)
        exponentials = -np.sort(-rng.exponential(size=(SORTED_LATENTS, length)), axis=1)
        return cls(
            sorted_top_correlation(tops.value[full].astype(np.float64)),
            sorted_top_correlation(exponentials),
        )
