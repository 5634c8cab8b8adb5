"""The compiled inner loops over pairs of latents: sums of one block, and Pearson's r of its pairs.

Why compiled: they are scatters with a data-dependent address (add to the pair of two latents). NumPy and SciPy have no
vectorised form that does not build something as large as the answer: SciPy's sparse XᵀX takes about ten times as long
as :func:`add_pairs` and does half of its work (benchmarks/analyze.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.compiled import compiled

PREFETCH_ROWS = 16
"""Rows whose entries are touched ahead of their use: their cache misses then overlap (measured: 1.7 times as fast)."""


LINE_ENTRIES = 8
"""Entries (4 bytes latent + 4 bytes value, interleaved) in a 64-byte cache line."""


@compiled
def suffixes(
    rows: NDArray[np.int32], entry: NDArray[np.int64], indptr: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """For every latent-major entry (i, row): where the latents ≥ i of its row begin, and how many there are.

    The latents of a row ascend, so they are the entry itself and what follows it.
    """
    begin = np.empty(len(rows), np.int64)
    length = np.empty(len(rows), np.int32)
    for p in range(len(rows)):
        begin[p] = entry[p]
        length[p] = indptr[rows[p] + 1] - entry[p]
    return begin, length


@compiled
def partner_suffixes(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    partner: NDArray[np.int64],
    indptr: NDArray[np.int64],
    latents: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """As :func:`suffixes`, for the latents > i of row partner[row].

    Only j > i: then the pair {i, j} is counted once, with the smaller latent on its own row. Latent i itself on another
    row is no pair.
    """
    begin = np.empty(len(rows), np.int64)
    length = np.empty(len(rows), np.int32)
    for i in range(len(starts) - 1):
        for p in range(starts[i], starts[i + 1]):
            r = partner[rows[p]]
            low, high = indptr[r], indptr[r + 1]
            end = high
            # Bisection: what lies before `low` is ≤ i, what lies from `high` on is > i. They meet at the first > i,
            # or at the end of the row where there is none.
            while low < high:
                mid = (low + high) >> 1
                if latents[mid] <= i:
                    low = mid + 1
                else:
                    high = mid
            begin[p] = low
            length[p] = end - low
    return begin, length


@compiled
def add_pairs(
    starts: NDArray[np.int64],
    left: NDArray[np.float32],
    begin: NDArray[np.int64],
    length: NDArray[np.int32],
    latents: NDArray[np.int32],
    values: NDArray[np.float32],
    sums: NDArray[np.float64],
    counts: NDArray[np.uint32],
    origin: int,
    first: int,
    stop: int,
) -> int:
    """sums[i − origin, j − origin] += z_i z_j and counts[…] += 1 for the pairs i ≤ j of every row, first ≤ i < stop.

    Gustavson's algorithm with a dense accumulator: for one latent i at a time, its whole row of the triangle is formed
    in `buffer`, which stays in the second-level cache, and then added in one sequential pass. For a latent with few
    entries that pass would cost more than it saves: it adds to the triangle directly.

    The caller guarantees origin ≤ first and stop ≤ origin + len(sums). Every j is ≥ i ≥ origin, so all indices lie
    inside the block; calls with disjoint ranges write disjoint rows and need no lock.

    Args:
        starts: [F + 1] of the latent-major order; left: [E] its values z_i.
        begin, length: [E] the entries j of the same row, in `latents` and `values`.
        sums, counts: [rows of the block, F − origin].

    Returns:
        A checksum of what was touched ahead, so that the compiler keeps the touching.
    """
    buffer = np.zeros((sums.shape[1], 2), np.float64)  # Σ z_i z_j and n_ij side by side; exact up to 2⁵³
    touched = 0
    for i in range(first, stop):
        s, c = sums[i - origin], counts[i - origin]
        p, end = starts[i], starts[i + 1]
        total = 0
        for q in range(p, end):
            total += length[q]
        direct = total < (len(s) - (i - origin)) // 2
        # Here `buffer` is zero throughout. Rows come in groups: first one load for each cache line of the group's
        # entries, so that their waits for memory overlap, then the sums, which find them in the cache.
        while p < end:
            last = min(p + PREFETCH_ROWS, end)
            for q in range(p, last):
                for ahead in range(begin[q], begin[q] + length[q], LINE_ENTRIES):
                    touched += latents[ahead]
            for q in range(p, last):
                z = np.float64(left[q])
                for e in range(begin[q], begin[q] + length[q]):
                    j = latents[e] - origin
                    if direct:
                        s[j] += z * values[e]
                        c[j] += np.uint32(1)
                    else:
                        buffer[j, 0] += z * values[e]
                        buffer[j, 1] += 1.0
            p = last
        if not direct:
            _empty(buffer, i - origin, s, c)
    return touched


@compiled
def _empty(buffer: NDArray[np.float64], first: int, sums: NDArray[np.float64], counts: NDArray[np.uint32]) -> None:
    """Add the buffer to its row of the triangle from column `first` on, and set it to zero again."""
    for j in range(first, len(sums)):
        sums[j] += buffer[j, 0]
        counts[j] += np.uint32(buffer[j, 1])
        buffer[j, 0] = 0.0
        buffer[j, 1] = 0.0


@compiled
def scan_pairs(
    sums: NDArray[np.float64],
    counts: NDArray[np.uint32],
    origin: int,
    total: float,
    n: NDArray[np.int64],
    s1: NDArray[np.float64],
    spread: NDArray[np.float64],
    min_fired: int,
    min_both: int,
    threshold: float,
    histogram: NDArray[np.int64],
    found_pairs: NDArray[np.int32],
    found_r: NDArray[np.float64],
    near_r: NDArray[np.float32],
    near_id: NDArray[np.int32],
) -> int:
    """Pearson's r of the pairs i < j of one block of rows: histogram, pairs beyond the threshold, nearest neighbours.

    r = (N Σz_i z_j − Σz_i Σz_j) / (spread_i spread_j), spread_i = √(N Σz_i² − (Σz_i)²), of latents with n ≥ min_fired
    and spread > 0. The histogram has every such pair; the rest only those that fire together at all. Each pair of the
    triangle is visited once and offered to both of its latents, so near_* ends with the nearest of all.

    Args:
        sums, counts: [t, F − origin] of :func:`add_pairs`.
        total: N.
        histogram: [B] over −1 … 1, added to.
        found_pairs: [capacity, 2], found_r: [capacity]: filled with the pairs |r| > threshold and n_ij ≥ min_both.
        near_r, near_id: [F, m] the m largest r of each latent so far, descending (n_ij ≥ 1).

    Returns:
        How many pairs are beyond the threshold; where that exceeds the capacity, the rest was counted only.
    """
    bins, found = len(histogram), 0
    for a in range(sums.shape[0]):
        i = origin + a
        if n[i] < min_fired or spread[i] <= 0:
            continue
        for b in range(a + 1, sums.shape[1]):  # left of the diagonal nothing is filled
            j = origin + b
            if n[j] < min_fired or spread[j] <= 0:
                continue
            r = (total * sums[a, b] - s1[i] * s1[j]) / (spread[i] * spread[j])
            r = min(1.0, max(-1.0, r))
            histogram[min(bins - 1, int((r + 1.0) * 0.5 * bins))] += 1
            if counts[a, b] == 0:
                continue
            if abs(r) > threshold and counts[a, b] >= min_both:
                if found < len(found_r):
                    found_pairs[found, 0] = i
                    found_pairs[found, 1] = j
                    found_r[found] = r
                found += 1
            _offer(near_r[i], near_id[i], r, j)
            _offer(near_r[j], near_id[j], r, i)
    return found


@compiled
def _offer(near_r: NDArray[np.float32], near_id: NDArray[np.int32], r: float, other: int) -> None:
    """Insert a neighbour into one latent's list [m], which stays descending; its last entry drops out.

    Of equal r the one that came first stays ahead, so the list depends on the order of blocks and on nothing else.
    """
    slot = len(near_r) - 1
    if not r > near_r[slot]:
        return
    while slot > 0 and near_r[slot - 1] < r:
        near_r[slot] = near_r[slot - 1]
        near_id[slot] = near_id[slot - 1]
        slot -= 1
    near_r[slot] = r
    near_id[slot] = other
