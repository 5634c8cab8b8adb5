"""Counting sorts between the two orders of sparse codes: row-major and latent-major."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled


@compiled
def transpose(
    indptr: NDArray[np.int64], latents: NDArray[np.int32], n_latents: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Row-major entries grouped by latent, rows ascending (a counting sort).

    Args:
        indptr: [R + 1] where each row's entries begin.
        latents: [E].

    Returns:
        (starts [F + 1], rows [E], entry [E]: the place of each entry in row-major order).
    """
    starts = np.zeros(n_latents + 1, np.int64)
    for e in range(len(latents)):
        starts[latents[e] + 1] += 1
    for i in range(n_latents):
        starts[i + 1] += starts[i]
    place = starts[:-1].copy()
    rows = np.empty(len(latents), np.int32)
    entry = np.empty(len(latents), np.int64)
    for r in range(len(indptr) - 1):
        for e in range(indptr[r], indptr[r + 1]):
            p = place[latents[e]]
            rows[p] = r
            entry[p] = e
            place[latents[e]] = p + 1
    return starts, rows, entry


@compiled
def sort_rows(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    entry: NDArray[np.int64],
    indptr: NDArray[np.int64],
    latents: NDArray[np.int32],
    values: NDArray[np.float32],
) -> None:
    """Put the entries of every row in the order of their latents, in place of `latents` and `values`.

    `starts`, `rows`, `entry` come from :func:`transpose` and are brought up to date.
    """
    old = values.copy()
    place = indptr[:-1].copy()
    for i in range(len(starts) - 1):
        for p in range(starts[i], starts[i + 1]):
            e = place[rows[p]]
            place[rows[p]] = e + 1
            latents[e] = i
            values[e] = old[entry[p]]
            entry[p] = e
