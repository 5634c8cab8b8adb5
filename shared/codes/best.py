"""Per latent, a bounded list of its best entries, for the reports and for the samples of training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import order
from .compiled import compiled
from .parallel import over_latents


class Best:
    """The K entries of each latent with the largest score, in whatever order they are offered.

    Args:
        k: K, 0 or more.
        distinct: keep one entry per key, the best.
        payload: type of what is kept beside an entry.

    Attributes:
        score, row, payload, key: [F, K], best first, of equal scores the lower row; score 0 and row −1 where there are
            fewer entries.
        slot: [F, K] a number in 0 … K − 1 that an entry has for as long as it is kept, so that more can be kept of it
            in arrays of the caller's own.
    """

    def __init__(self, n_latents: int, k: int, *, distinct: bool, payload: type[np.generic]) -> None:
        self.distinct = distinct
        self.score = np.zeros((n_latents, k))
        self.row = np.full((n_latents, k), -1, np.int64)
        self.payload: NDArray[Any] = np.zeros((n_latents, k), payload)
        self.key = np.zeros((n_latents, k), np.uint64)
        self.slot = np.tile(np.arange(k, dtype=np.int32), (n_latents, 1))

    @property
    def kept(self) -> NDArray[np.int64]:
        """Entries kept per latent [F]."""
        kept: NDArray[np.int64] = (self.score > 0).sum(axis=1)
        return kept

    def kept_of(self, latent: int) -> int:
        """Entries kept of one latent."""
        return int((self.score[latent] > 0).sum())

    def offer(
        self,
        starts: NDArray[np.int64],
        *,
        score: NDArray[np.float64],
        row: NDArray[np.int64],
        payload: NDArray[Any],
        key: NDArray[np.uint64],
    ) -> None:
        """Offer entries [E] in latent-major order, those of latent i at starts[i] … starts[i + 1]; scores are > 0."""
        if not self.score.shape[1]:
            return

        def run(first: int, stop: int) -> None:
            keep_best(
                starts, score, row, payload, key, self.distinct,
                self.score, self.row, self.payload, self.key, self.slot, first, stop,
            )  # fmt: skip

        over_latents(run, np.diff(starts) + 1)

    def offer_unsorted(
        self,
        latent: NDArray[np.integer],
        *,
        score: NDArray[np.float64],
        row: NDArray[np.int64],
        payload: NDArray[Any],
        key: NDArray[np.uint64],
    ) -> None:
        """Offer entries [E] of the latents `latent` [E], in any order."""
        n_latents, k = self.score.shape
        if not k:
            return
        # What is below the least that is kept cannot enter: after a while that is most of what is offered.
        near = np.flatnonzero(score >= self.score[latent, -1])
        chosen = near[np.argsort(latent[near], kind="stable")]
        starts = order.starts_of(latent[chosen], n_latents)
        self.offer(starts, score=score[chosen], row=row[chosen], payload=payload[chosen], key=key[chosen])


@compiled
def keep_best(
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
    """Keep, per latent in first … stop, the K entries with the largest score (ties: the lower row), sorted; with
    `distinct`, one per key.

    A kept entry owns a slot for as long as it is kept; a new entry takes over the slot of the one it drives out. The
    result does not depend on the order of the entries: (score, row) orders them all, and of one key the best wins.

    Args:
        starts: [F + 1]; scores, rows, payload, keys: [E] in latent-major order. A score is > 0.
        top_*: [F, K], score 0 where nothing is kept yet.
    """
    k = top_score.shape[1]
    for i in range(first, stop):
        ts, tr, tv, tk, tp = top_score[i], top_row[i], top_payload[i], top_key[i], top_slot[i]
        for p in range(starts[i], starts[i + 1]):
            score, row = scores[p], rows[p]
            if score < ts[k - 1] or (score == ts[k - 1] and row >= tr[k - 1]):
                continue
            # The new entry beats the last one kept. `gap` is the place it frees: the last, or that of its own key.
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
            # The list is sorted but for the gap, which moves up past every entry that the new one beats.
            slot = tp[gap]
            s = gap
            while s > 0 and (ts[s - 1] < score or (ts[s - 1] == score and tr[s - 1] > row)):
                ts[s], tr[s], tv[s], tk[s], tp[s] = ts[s - 1], tr[s - 1], tv[s - 1], tk[s - 1], tp[s - 1]
                s -= 1
            ts[s], tr[s], tv[s], tk[s], tp[s] = score, row, payload[p], keys[p], slot
