"""The compiled inner loops over positions: codes counted by bin, and by bin after random shifts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.compiled import compiled


@compiled
def by_bin(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    bin_of: NDArray[np.int32],
    counts: NDArray[np.int64],
    sums: NDArray[np.float64],
    first: int,
    stop: int,
) -> None:
    """counts[i, bin_of[row]] += 1 and sums[…] += z over the latent-major entries; a bin < 0 is left out."""
    for i in range(first, stop):
        for p in range(starts[i], starts[i + 1]):
            b = bin_of[rows[p]]
            if b >= 0:
                counts[i, b] += 1
                sums[i, b] += values[p]


@compiled
def shifted_bins(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    slot: NDArray[np.uint16],
    counts: NDArray[np.int32],
    first: int,
    stop: int,
) -> None:
    """counts[i, slot[row, b]] += 1 for all replicates b: the bins that a latent's firings fall into after random
    shifts.

    Args:
        slot: [R, replicates] b · bins + (bin of the row's shifted position); 65535 in a row that is left out.
        counts: [F, replicates · bins].
    """
    replicates = slot.shape[1]
    for i in range(first, stop):
        c = counts[i]
        for p in range(starts[i], starts[i + 1]):
            where = slot[rows[p]]
            if where[0] == 65535:
                continue
            for b in range(replicates):
                c[where[b]] += 1
