"""r of every pair of latents from their exact sums: how many exceed the threshold, which, and each latent's nearest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.moments import CodeMoments
from ....shared.codes.pairs import scan_block
from .pair_sums import PairBlock

BINS = 100
"""Bins of the histogram of r over −1 … 1."""

FIRST_CAPACITY = 1 << 16
"""Pairs of one block for which room is made at first; a block with more is scanned again."""

NONE = -2.0
"""The r of a neighbour that does not exist: below every correlation."""

State = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int32], NDArray[np.uint32]]


@dataclass(frozen=True)
class Scan:
    """What one pass over a triangle of pair sums finds.

    Attributes:
        n_above: pairs beyond the threshold; pairs [P, 2] and r [P] hold the first max_pairs of them.
        histogram: [BINS] of r over −1 … 1; n_pairs of them were scored.
        near, near_r, near_both: [F, m] most correlated latents, r of the pair and rows on which both fire; r = −2 where
            there are fewer.
    """

    n_above: int
    pairs: NDArray[np.int32]
    r: NDArray[np.float64]
    histogram: NDArray[np.int64]
    near: NDArray[np.int32]
    near_r: NDArray[np.float32]
    near_both: NDArray[np.uint32]

    @property
    def n_pairs(self) -> int:
        return int(self.histogram.sum())

    @property
    def nearest_r(self) -> NDArray[np.float32]:
        """Largest r of each latent with any other [F]; NaN where it has none."""
        r = self.near_r[:, 0]
        return np.where(r > NONE, r, np.nan)


def scan(
    blocks: Iterable[PairBlock],
    moments: CodeMoments,
    *,
    threshold: float,
    min_fired: int,
    min_both: int,
    max_pairs: int,
    neighbours: int,
) -> Scan:
    """r of all pairs, block by block.

    Args:
        blocks: the triangle of pair sums, in order, over the rows of `moments`.
        threshold: |r| beyond which a pair is counted, if both latents fire together on ≥ min_both rows.
        min_fired: latents that fire on fewer rows are not scored.
        max_pairs: at most this many pairs are listed; all are counted.
        neighbours: most correlated latents kept per latent.
    """
    shape = (len(moments.n), neighbours)
    # The histogram; of the neighbours r, who they are, and rows on which both fire.
    state: State = (
        np.zeros(BINS, np.int64),
        np.full(shape, NONE, np.float32),
        np.full(shape, -1, np.int32),
        np.zeros(shape, np.uint32),
    )
    pairs, r, total, room = [], [], 0, max_pairs
    for block in blocks:
        capacity = min(room, FIRST_CAPACITY)
        # The kernel adds to the histogram and to the neighbours, and counts what does not fit. Each try works on copies
        # of the state before this block, so that a second one with enough room counts nothing twice.
        while True:
            after: State = (state[0].copy(), state[1].copy(), state[2].copy(), state[3].copy())
            found, found_pairs, found_r = _block(block, moments, (min_fired, min_both), threshold, capacity, after)
            if found <= capacity or capacity == room:
                break
            capacity = min(room, found)
        state = after
        total += found
        listed = min(found, capacity)
        room -= listed
        pairs.append(found_pairs[:listed])
        r.append(found_r[:listed])
    histogram, near_r, near, near_both = state
    return Scan(
        total,
        np.concatenate(pairs),
        np.concatenate(r),
        histogram=histogram,
        near=near,
        near_r=near_r,
        near_both=near_both,
    )


def _block(
    block: PairBlock,
    moments: CodeMoments,
    at_least: tuple[int, int],
    threshold: float,
    capacity: int,
    state: State,
) -> tuple[int, NDArray[np.int32], NDArray[np.float64]]:
    """(pairs beyond the threshold; the first `capacity` of them, and r of each) of one block; `state` is added to."""
    found_pairs, found_r = np.empty((capacity, 2), np.int32), np.empty(capacity)
    found = scan_block(
        sums=block.sums,
        counts=block.counts,
        origin=block.first,
        total=float(moments.rows),
        n=moments.n,
        s1=moments.sum,
        spread=moments.spread,
        ratio=moments.ratio,
        min_fired=at_least[0],
        min_both=at_least[1],
        threshold=threshold,
        histogram=state[0],
        found_pairs=found_pairs,
        found_r=found_r,
        near_r=state[1],
        near_id=state[2],
        near_both=state[3],
    )
    return found, found_pairs, found_r
