"""Counting sorts between the two orders of sparse codes: row-major and latent-major."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled


@compiled
def starts_of(keys: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Where each key's group begins in an array sorted by key [n + 1]: starts[k + 1] − starts[k] entries have key k.

    Args:
        keys: [E] integers in 0 … n − 1, in any order.
    """
    starts = np.zeros(n + 1, np.int64)
    for e in range(len(keys)):
        starts[keys[e] + 1] += 1
    for k in range(n):
        starts[k + 1] += starts[k]
    return starts


@compiled
def by_latent(
    indptr: NDArray[np.int64], latents: NDArray[np.int32], carried: NDArray[Any], n_latents: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]:
    """Row-major entries grouped by latent, rows ascending.

    Args:
        indptr: [R + 1] where each row's entries begin.
        latents: [E], in any order within a row. carried: [E] something of each entry: its value, or its number.

    Returns:
        (starts [F + 1]; rows, carried [E], latent by latent).
    """
    starts = starts_of(latents, n_latents)
    # place[i] is the next free place in latent i's group. Rows come in ascending order, so each group fills up in it.
    place = starts[:-1].copy()
    rows = np.empty(len(latents), np.int32)
    moved = np.empty_like(carried)
    for r in range(len(indptr) - 1):
        for e in range(indptr[r], indptr[r + 1]):
            p = place[latents[e]]
            place[latents[e]] = p + 1
            rows[p] = r
            moved[p] = carried[e]
    return starts, rows, moved


@compiled
def by_row(
    indptr: NDArray[np.int64], starts: NDArray[np.int64], rows: NDArray[np.int32], values: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
    """The way back: entries grouped by latent, grouped by row, latents ascending.

    Args:
        starts, rows, values: of :func:`by_latent`.

    Returns:
        (latents, values [E], row by row; entry [E]: the place of each latent-major entry in this order).
    """
    latents = np.empty(len(rows), np.int32)
    sorted_values = np.empty_like(values)
    entry = np.empty(len(rows), np.int64)
    place = indptr[:-1].copy()  # the next free place of each row; latents come in ascending order
    for i in range(len(starts) - 1):
        for p in range(starts[i], starts[i + 1]):
            e = place[rows[p]]
            place[rows[p]] = e + 1
            latents[e] = i
            sorted_values[e] = values[p]
            entry[p] = e
    return latents, sorted_values, entry
