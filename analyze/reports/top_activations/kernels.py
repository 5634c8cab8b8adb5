"""The compiled inner loop over activation values: a histogram in octaves for each latent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.compiled import compiled


@compiled
def value_histogram(
    starts: NDArray[np.int64],
    values: NDArray[np.float32],
    lowest: float,
    per_octave: int,
    histogram: NDArray[np.int64],
    first: int,
    stop: int,
) -> None:
    """Counts of log₂ z in bins of 1/per_octave from `lowest` up; the outermost bins hold what lies beyond."""
    bins = histogram.shape[1]
    for i in range(first, stop):
        for p in range(starts[i], starts[i + 1]):
            b = int(np.floor((np.log2(np.float64(values[p])) - lowest) * per_octave))
            histogram[i, min(bins - 1, max(0, b))] += 1
