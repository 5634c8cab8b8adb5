"""The compiled inner loop that cuts the codes around the best activations out of a shard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...shared.codes.compiled import compiled


@compiled
def windows(
    top_score: NDArray[np.float64],
    top_row: NDArray[np.int64],
    top_slot: NDArray[np.int32],
    start_row: int,
    ctx: int,
    indptr: NDArray[np.int64],
    latents: NDArray[np.int32],
    values: NDArray[np.float32],
    before: int,
    after: int,
    heat: NDArray[np.float32],
    latent_0: int,
    first: int,
    stop: int,
) -> None:
    """For kept entries of this shard, the latent's activation at each token around: heat[i, slot, before + δ].

    Args:
        start_row: the cache row of the shard's first row; its rows are whole sequences of ctx.
        indptr, latents, values: the shard's codes, row-major, latents ascending.
        heat: [F, K, before + 1 + after], 0 outside the sequence.
        latent_0: the latent that the first of the F places is.
    """
    n_rows = len(indptr) - 1
    for i in range(first, stop):
        for s in range(top_score.shape[1]):
            if top_score[i, s] == 0.0:
                break
            local = top_row[i, s] - start_row
            if local < 0 or local >= n_rows:
                continue
            begin = local - local % ctx
            out = heat[i, top_slot[i, s]]
            for w in range(before + 1 + after):
                r = local - before + w
                out[w] = np.float32(0)
                if r < begin or r >= begin + ctx:
                    continue
                # Bisection in the row's ascending latents: entries before low are smaller, from high on not.
                low, high = indptr[r], indptr[r + 1]
                while low < high:
                    mid = (low + high) >> 1
                    if latents[mid] < latent_0 + i:
                        low = mid + 1
                    else:
                        high = mid
                if low < indptr[r + 1] and latents[low] == latent_0 + i:
                    out[w] = values[low]
