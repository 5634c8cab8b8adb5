"""The compiled loops over pairs of latents that fire on the same row: Σ z_i z_j, n_ij, and Pearson's r.

All users form the sums of one latent i at a time in a dense float64 buffer over its partners j (Gustavson's algorithm
with a dense accumulator, :func:`_add_partners`). They differ in what becomes of the buffer:

- The analysis (:func:`add_pairs`, :func:`scan_block`) adds millions of rows, part by part, to a triangle that stays. It
  adds the whole buffer to the triangle's row, and reads r from the finished triangle, of pairs that never fire together
  too.
- The analysis of wide dictionaries (met_pairs.py) has no triangle: it keeps the codes, and reads the buffer at once.
- The training window (:func:`scan_rows`) sees a few batches once. It reads r at once, of the partners that the buffer
  holds alone, and clears these: no triangle, no F² work.

Why compiled: these are scatters with a data-dependent address (add to the pair of two latents). NumPy and SciPy have no
vectorised form that does not build something as large as the answer: SciPy's sparse XᵀX takes about ten times as long
as :func:`add_pairs` and does half of its work (benchmarks/analyze.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled, inlined

PREFETCH_ROWS = 16
"""Rows whose entries are touched ahead of their use: their cache misses then overlap (measured: 1.7 times as fast)."""

LINE_ENTRIES = 8
"""Entries (4 bytes latent + 4 bytes value, interleaved) in a 64-byte cache line."""


class Spread(NamedTuple):
    """Moments of the latents over a number of rows, as the compiled loops take them: n, mean, std [F]."""

    rows: int
    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


class Limits(NamedTuple):
    """Which pairs are scored: each latent fires on ≥ min_fired rows, both together on ≥ min_both. Which are listed:
    |r| > threshold or a Jaccard index ≥ jaccard."""

    threshold: float
    jaccard: float
    min_fired: int
    min_both: int


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
def _add_partners(
    z: float,
    begin: int,
    stop: int,
    latents: NDArray[np.int32],
    values: NDArray[np.float32],
    origin: int,
    buffer: NDArray[np.float64],
) -> None:
    """buffer[j − origin] += (z · z_j, 1) for the entries begin … stop of one row. A count is exact up to 2⁵³."""
    for e in range(begin, stop):
        j = latents[e] - origin
        buffer[j, 0] += z * values[e]
        buffer[j, 1] += 1.0


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
                if direct:
                    for e in range(begin[q], begin[q] + length[q]):
                        j = latents[e] - origin
                        s[j] += z * values[e]
                        c[j] += np.uint32(1)
                else:
                    _add_partners(z, begin[q], begin[q] + length[q], latents, values, origin, buffer)
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
def bin_of(r: float, bins: int) -> int:
    """Bin of r in −1 … 1, of `bins` equal ones; r = 1 falls into the last."""
    return min(bins - 1, int((r + 1.0) * 0.5 * bins))


@inlined
def r_of_sums(total: float, product: float, sum_i: float, sum_j: float, spreads: float) -> float:
    """r of a pair: (N Σz_i z_j − Σz_i Σz_j) / (spread_i spread_j), kept within −1 … 1 against rounding.

    Args:
        total: N. product: Σz_i z_j. spreads: spread_i spread_j.
    """
    return min(1.0, max(-1.0, (total * product - sum_i * sum_j) / spreads))


@compiled
def scan_block(
    sums: NDArray[np.float64],
    counts: NDArray[np.uint32],
    origin: int,
    total: float,
    n: NDArray[np.int64],
    s1: NDArray[np.float64],
    spread: NDArray[np.float64],
    ratio: NDArray[np.float64],
    min_fired: int,
    min_both: int,
    threshold: float,
    histogram: NDArray[np.int64],
    found_pairs: NDArray[np.int32],
    found_r: NDArray[np.float64],
    near_r: NDArray[np.float32],
    near_id: NDArray[np.int32],
    near_both: NDArray[np.uint32],
) -> int:
    """Pearson's r of the pairs i < j of one block of rows: histogram, pairs beyond the threshold, nearest neighbours.

    r = (N Σz_i z_j − Σz_i Σz_j) / (spread_i spread_j), spread_i = √(N Σz_i² − (Σz_i)²), of latents with n ≥ min_fired
    and spread > 0. The histogram has every such pair; the rest only those that fire together at all. A pair that never
    does has Σz_i z_j = 0, so r = −a_i a_j with a = Σz_i / spread_i. Each pair of the triangle is visited once and
    offered to both of its latents, so near_* ends with the nearest of all.

    Args:
        sums, counts: [t, F − origin] of :func:`add_pairs`.
        total: N. ratio: a.
        histogram: [B] over −1 … 1, added to.
        found_pairs: [capacity, 2], found_r: [capacity]: filled with the pairs |r| > threshold and n_ij ≥ min_both.
        near_r, near_id, near_both: [F, m] the m largest r of each latent so far (n_ij ≥ 1), with whom, and n_ij.

    Returns:
        How many pairs are beyond the threshold; where that exceeds the capacity, the rest was counted only.
    """
    found = 0
    for a in range(sums.shape[0]):
        i = origin + a
        if n[i] < min_fired or spread[i] <= 0:
            continue
        for b in range(a + 1, sums.shape[1]):  # left of the diagonal nothing is filled
            j = origin + b
            if n[j] < min_fired or spread[j] <= 0:
                continue
            if counts[a, b] == 0:
                histogram[bin_of(max(-1.0, -(ratio[i] * ratio[j])), len(histogram))] += 1
                continue
            r = r_of_sums(total, sums[a, b], s1[i], s1[j], spread[i] * spread[j])
            histogram[bin_of(r, len(histogram))] += 1
            if abs(r) > threshold and counts[a, b] >= min_both:
                if found < len(found_r):
                    found_pairs[found, 0] = i
                    found_pairs[found, 1] = j
                    found_r[found] = r
                found += 1
            offer(near_r[i], near_id[i], near_both[i], r, j, counts[a, b])
            offer(near_r[j], near_id[j], near_both[j], r, i, counts[a, b])
    return found


@compiled
def offer(
    near_r: NDArray[np.float32],
    near_id: NDArray[np.int32],
    near_both: NDArray[np.uint32],
    r: float,
    other: int,
    both: int,
) -> None:
    """Insert a neighbour into one latent's list [m], which stays in order; its last entry drops out.

    The order is by r as it is stored, then by the smaller latent, so it depends on no order in which pairs are visited.
    """
    stored, slot = np.float32(r), len(near_r) - 1
    if stored < near_r[slot] or (stored == near_r[slot] and other > near_id[slot]):
        return
    while slot > 0 and (near_r[slot - 1] < stored or (near_r[slot - 1] == stored and near_id[slot - 1] > other)):
        near_r[slot], near_id[slot], near_both[slot] = near_r[slot - 1], near_id[slot - 1], near_both[slot - 1]
        slot -= 1
    near_r[slot], near_id[slot], near_both[slot] = stored, other, both


@inlined
def _pearson(product: float, both: float, i: int, j: int, over: Spread, limits: Limits) -> float:
    """r of a pair from its Σ z_i z_j and n_ij; NaN where it is not scored or a latent does not vary."""
    if both < limits.min_both or over.n[i] < limits.min_fired or over.n[j] < limits.min_fired:
        return np.nan
    if over.std[i] <= 0 or over.std[j] <= 0:
        return np.nan
    r = float((product / over.rows - over.mean[i] * over.mean[j]) / (over.std[i] * over.std[j]))
    return min(1.0, max(-1.0, r))


# Long, since half of it is the signature and its meaning; the loop is one piece, for its state is local.
@compiled
def scan_rows(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    entry: NDArray[np.int64],
    indptr: NDArray[np.int64],
    latents: NDArray[np.int32],
    values: NDArray[np.float32],
    rest: NDArray[np.bool_],
    over_rest: Spread,
    over_all: Spread,
    limits: Limits,
    bins: int,
    capacity: int,
    first: int,
    stop: int,
) -> tuple[Any, ...]:
    """Pearson's r of every pair i < j, first ≤ i < stop, that shares a row.

    Args:
        starts … values: both orders of the codes (`SparseCodes`).
        rest: [R] the rows excluding position 0. over_rest, over_all: moments of these rows and of all rows.

    Returns:
        (pairs listed; pairs with |r| > threshold over all rows; the listed i, j, r, both [capacity], the rest counted
        only; largest r of each latent [F], 0 without a partner; histogram of r [bins]).
    """
    n_latents = len(starts) - 1
    sums, sums_first = np.zeros((n_latents, 2)), np.zeros((n_latents, 2))  # all 0 whenever a latent begins
    partners = np.empty(n_latents + 1, np.int32)  # one more than there can be: see below
    out_i, out_j = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    out_r, out_both = np.empty(capacity), np.empty(capacity, np.int64)
    largest, histogram = np.zeros(n_latents), np.zeros(bins, np.int64)
    found, found_all = 0, 0
    for i in range(first, stop):
        if over_all.n[i] < limits.min_fired:
            continue
        met = 0
        for p in range(starts[i], starts[i + 1]):
            # The latents of a row ascend, so the partners j > i are what follows i's own entry.
            own, end = entry[p], indptr[rows[p] + 1]
            for e in range(own + 1, end):
                # Written always, kept only where j is first met, while its sums are 0: no branch to mispredict.
                partners[met] = latents[e]
                met += sums[latents[e], 1] + sums_first[latents[e], 1] == 0.0
            into = sums if rest[rows[p]] else sums_first
            _add_partners(np.float64(values[own]), own + 1, end, latents, values, 0, into)
        for j in partners[:met]:
            both = sums[j, 1]
            r = _pearson(sums[j, 0], both, i, j, over_rest, limits)
            r_all = _pearson(sums[j, 0] + sums_first[j, 0], both + sums_first[j, 1], i, j, over_all, limits)
            sums[j, 0] = sums[j, 1] = sums_first[j, 0] = sums_first[j, 1] = 0.0
            found_all += abs(r_all) > limits.threshold
            if np.isnan(r):
                continue
            histogram[bin_of(r, bins)] += 1
            largest[i], largest[j] = max(largest[i], r), max(largest[j], r)
            either = over_rest.n[i] + over_rest.n[j] - both
            if abs(r) > limits.threshold or both >= limits.jaccard * either:
                if found < capacity:
                    out_i[found], out_j[found], out_r[found], out_both[found] = i, j, r, both
                found += 1
    return found, found_all, out_i, out_j, out_r, out_both, largest, histogram
