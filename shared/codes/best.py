"""Per latent, a bounded list of its best entries: the compiled loop that fills it, for analysis and for training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled


@compiled
def offer(
    starts: NDArray[np.int64],
    scores: NDArray[np.float64],
    rows: NDArray[np.int64],
    payload: NDArray[Any],
    keys: NDArray[np.uint64],
    distinct: bool,
    top_score: NDArray[np.float64],
    top_row: NDArray[np.int64],
    top_payload: NDArray[Any],
    top_key: NDArray[np.uint64],
    top_slot: NDArray[np.int32],
    first: int,
    stop: int,
) -> None:
    """Keep, per latent, the K entries with the largest score (ties: the lower row), sorted; with `distinct`, one per
    key.

    A kept entry owns a payload slot for as long as it is kept; a new entry takes over the slot of the one it drives
    out.

    Args:
        starts: [F + 1]; scores, rows, payload, keys: [E] in latent-major order. A score is > 0. The payload is whatever
            is to be kept beside it.
        top_*: [F, K], score 0 where nothing is kept yet.
    """
    k = top_score.shape[1]
    for i in range(first, stop):
        ts, tr, tv, tk, tp = top_score[i], top_row[i], top_payload[i], top_key[i], top_slot[i]
        for p in range(starts[i], starts[i + 1]):
            score, row = scores[p], rows[p]
            if score < ts[k - 1] or (score == ts[k - 1] and row >= tr[k - 1]):
                continue
            gap = k - 1
            if distinct:
                for s in range(k):
                    if ts[s] == 0.0:
                        break
                    if tk[s] == keys[p]:
                        gap = s
                        break
                if tk[gap] == keys[p] and ts[gap] > 0.0 and (score < ts[gap] or (score == ts[gap] and row >= tr[gap])):
                    continue
            slot = tp[gap]
            s = gap
            while s > 0 and (ts[s - 1] < score or (ts[s - 1] == score and tr[s - 1] > row)):
                ts[s], tr[s], tv[s], tk[s], tp[s] = ts[s - 1], tr[s - 1], tv[s - 1], tk[s - 1], tp[s - 1]
                s -= 1
            ts[s], tr[s], tv[s], tk[s], tp[s] = score, row, payload[p], keys[p], slot
