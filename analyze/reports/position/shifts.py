"""The null of position: every sequence rotated by a random amount. Bursts stay, the link to position goes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...stream.batches import ShardRows
from .config import EXCLUDED


def shift_slots(
    rows: ShardRows,
    *,
    shifts: int,
    skip: int,
    to_bin: NDArray[np.int32],
    n_bins: int,
    rng: np.random.Generator,
) -> NDArray[np.uint16]:
    """For each row and replicate, replicate · n_bins + the bin that the row's position is rotated into [R, shifts].

    Every sequence is rotated by its own uniform amount, over its rows that count, in order: a firing moves to the
    position of another such row. Each replicate therefore permutes the positions of a sequence: no bin gains or loses
    rows, and firings that follow one another still do, except across the end.

    Args:
        shifts: replicates.
        skip: 1 excludes the rows at position 0, a BOS within the sequence too; 0 includes them.
        to_bin: [ctx] bin of each position, 0 for position 0; with skip 1 the slots count the bins from 1 on.
        n_bins: bins of one replicate (without bin 0 if skip is 1).

    Returns:
        EXCLUDED in rows that do not count.
    """
    position = rows.position.reshape(-1, rows.ctx)
    inside = rows.keep.reshape(-1, rows.ctx) & (position >= skip)
    length = inside.sum(axis=1)
    shift = rng.integers(0, np.maximum(length, 1)[:, None], (len(length), shifts))
    # kept[s, :length[s]] are the positions that count, in order; rank is each row's index among them. The stable sort
    # keeps their order; what follows them is never read, as indices are taken modulo the length.
    kept = np.take_along_axis(position, np.argsort(~inside, axis=1, kind="stable"), axis=1)
    rank = np.maximum(np.cumsum(inside, axis=1) - 1, 0)
    rotated = (rank[:, :, None] + shift[:, None, :]) % np.maximum(length, 1)[:, None, None]
    bins = to_bin[kept][np.arange(len(kept))[:, None, None], rotated]
    slot = (bins - skip + np.arange(shifts) * n_bins).astype(np.uint16)
    slot[~inside] = EXCLUDED
    by_row: NDArray[np.uint16] = slot.reshape(len(rows), shifts)
    return by_row
