"""Which pairs of latents fire together in a window, and how strongly they correlate."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...shared.codes.moments import CodeMoments

if TYPE_CHECKING:
    from ...shared.codes.pairs import Spread
    from ...shared.codes.sparse import SparseCodes

BINS = 40
"""Bins of the histogram of r."""


@dataclass(frozen=True)
class PairScan:
    """Pearson's r of the pairs of latents that fire together.

    Attributes:
        moments: of the rows excluding position 0.
        i, j, r, both: [P] the pairs i < j with |r| > threshold or a Jaccard index ≥ jaccard, their r and n_ij,
            excluding position 0.
        with_bos: how many pairs are above the threshold over all rows.
        largest: [F] largest r of each latent; 0 where it has no partner, NaN where it fired too rarely.
        histogram: [BINS] of r from −1 to 1, of all pairs that fire together often enough.
    """

    moments: CodeMoments
    i: NDArray[np.int64]
    j: NDArray[np.int64]
    r: NDArray[np.float64]
    both: NDArray[np.int64]
    with_bos: int
    largest: NDArray[np.float64]
    histogram: NDArray[np.int64]


def scan_pairs(
    codes: SparseCodes,
    rest: NDArray[np.bool_],
    *,
    threshold: float,
    min_fired: int,
    min_both: int,
    jaccard: float = float("inf"),
) -> PairScan:
    """r of all pairs of latents that fire on at least `min_fired` rows each and on `min_both` together.

    Exact, in float64; about E·k/2 multiply-adds for E entries of rows with k latents, and no F×F matrix. Pairs that
    never fire together have a small negative r and are not listed.

    Args:
        rest: [R] the rows excluding position 0.
    """
    from ...shared.codes.pairs import Limits, scan_rows  # numba, which a run without monitors need not load

    moments = codes.rows(rest).moments
    everything = moments + codes.rows(~rest).moments
    limits = Limits(float(threshold), float(jaccard), min_fired, min_both)
    starts = codes.by_latent.starts
    threads = torch.get_num_threads()
    # Ranges of about equally many entries; several per thread, since low latents have more partners above them.
    cuts = np.searchsorted(starts, np.linspace(0, starts[-1], 4 * threads + 1)[1:-1])
    edges = [0, *cuts.tolist(), codes.n_latents]
    ranges = [(begin, end) for begin, end in itertools.pairwise(edges) if begin < end]

    def part(span: tuple[int, int]) -> tuple[Any, ...]:
        capacity = 1 << 12
        while True:
            found = scan_rows(
                *codes.by_latent, codes.indptr, codes.latents, codes.values, rest, _spread(moments),
                _spread(everything), limits, BINS, capacity, *span,
            )  # fmt: skip
            if found[0] <= capacity:
                return found
            capacity = found[0]

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(part, ranges))
    i, j, r, both = (np.concatenate([found[k][: found[0]] for found in parts]) for k in range(2, 6))
    largest = np.max([found[6] for found in parts], axis=0)
    largest[(moments.n < min_fired) | (moments.std <= 0)] = np.nan
    histogram = np.sum([found[7] for found in parts], axis=0)
    return PairScan(moments, i, j, r, both, sum(found[1] for found in parts), largest, histogram)


def _spread(moments: CodeMoments) -> Spread:
    from ...shared.codes.pairs import Spread

    return Spread(moments.rows, moments.n, moments.mean, moments.std)
