"""The compiled inner loop over activation values: a histogram in octaves for each latent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.compiled import compiled

LOWEST_OCTAVE, OCTAVES, PER_OCTAVE = -12.0, 28, 4
"""Activations are counted in quarter octaves from 2⁻¹² to 2¹⁶."""


@compiled
def value_histogram(
    starts: NDArray[np.int64],
    values: NDArray[np.float32],
    histogram: NDArray[np.int64],
    first: int,
    stop: int,
) -> None:
    """histogram[i, bin of log₂ z] += 1 for the latent-major entries of latents first ≤ i < stop.

    Bins are 1/PER_OCTAVE wide from LOWEST_OCTAVE up; the outermost ones hold what lies beyond, so each latent's counts
    sum to its firings. Calls with disjoint ranges write disjoint rows.
    """
    bins = histogram.shape[1]
    for i in range(first, stop):
        for p in range(starts[i], starts[i + 1]):
            b = int(np.floor((np.log2(np.float64(values[p])) - LOWEST_OCTAVE) * PER_OCTAVE))
            histogram[i, min(bins - 1, max(0, b))] += 1
