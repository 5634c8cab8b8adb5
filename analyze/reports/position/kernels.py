"""The compiled inner loops over positions: codes counted by bin, and by bin after random shifts.

Both walk the latent-major entries of a range of latents and write only the output rows of these latents, so threads
with disjoint ranges need no lock. Their output is small beside the entries; NumPy would build index arrays of the size
of the entries times the replicates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.compiled import compiled
from .config import EXCLUDED


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
    """counts[i, bin_of[row]] += 1 and sums[…] += z for every entry; a row whose bin is < 0 does not count."""
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

    A slot names replicate and bin at once, so each firing adds one to every replicate: after every entry, the bins of
    each replicate hold as many firings as the unshifted ones. A row is excluded from all replicates or from none.

    Args:
        slot: [R, replicates] b · bins + (bin of the row's shifted position); EXCLUDED in a row that does not count.
        counts: [F, replicates · bins].
    """
    replicates = slot.shape[1]
    for i in range(first, stop):
        c = counts[i]
        for p in range(starts[i], starts[i + 1]):
            where = slot[rows[p]]
            if where[0] == EXCLUDED:
                continue
            for b in range(replicates):
                c[where[b]] += 1
