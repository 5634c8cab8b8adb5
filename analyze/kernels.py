"""The compiled inner loops of the one pass, over codes in row-major or latent-major order.

Why compiled: all of them are scatters with a data-dependent address (add to the pair, the bin, the sorted list of a
latent). NumPy and SciPy have no vectorised form of these that does not build something as large as the answer: SciPy's
sparse XᵀX takes about ten times as long as :func:`add_pairs` and does half of its work (benchmarks/analyze.py).

Every kernel takes a range of latents and touches only the output rows of that range, so :func:`over_latents` shares the
work between threads without locks and the result does not depend on their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.compiled import compiled

PREFETCH_ROWS = 16
"""Rows whose entries are touched ahead of their use: their cache misses then overlap (measured: 1.7 times as fast)."""

LINE_ENTRIES = 8
"""Entries (4 bytes latent + 4 bytes value, interleaved) in a 64-byte cache line."""


@cache
def threads() -> int:
    """How many threads share the kernels' work: the processors this process may use."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, int(limit)) if limit.isdigit() and int(limit) > 0 else available


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads(), thread_name_prefix="kernel")


def over_latents(kernel: Callable[[int, int], object], weight: NDArray[Any]) -> None:
    """Call kernel(first, stop) on ranges that cover all latents and weigh about the same.

    Args:
        weight: [F] the work that each latent takes, ≥ 0.
    """
    n_latents = len(weight)
    pieces = 4 * threads() if threads() > 1 else 1
    load = np.cumsum(weight, dtype=np.float64)
    total = load[-1] if n_latents else 0.0
    if total <= 0:
        return
    cuts = np.searchsorted(load, total * np.arange(1, pieces) / pieces, side="left") + 1
    bounds = np.unique(np.concatenate([[0], cuts, [n_latents]]).clip(0, n_latents)).tolist()
    spans = list(pairwise(bounds))
    if len(spans) == 1:
        kernel(*spans[0])
    else:
        list(_pool().map(lambda span: kernel(*span), spans))


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
    """As :func:`suffixes`, for the latents > i of row partner[row]."""
    begin = np.empty(len(rows), np.int64)
    length = np.empty(len(rows), np.int32)
    for i in range(len(starts) - 1):
        for p in range(starts[i], starts[i + 1]):
            r = partner[rows[p]]
            low, high = indptr[r], indptr[r + 1]
            end = high
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

    For one latent i at a time the sums over j are formed in a dense float64 buffer that stays in the second-level cache
    (Gustavson's algorithm with a dense accumulator) and then added to its row; a latent with few entries adds directly.

    Args:
        starts: [F + 1] of the latent-major order; left: [E] its values z_i.
        begin, length: [E] the entries j of the same row, in `latents` and `values`.
        sums, counts: [rows of the block, F − origin].

    Returns:
        A checksum of what was touched ahead, so that the compiler keeps the touching.
    """
    width = sums.shape[1]
    buffer = np.zeros((width, 2), np.float64)
    touched = 0
    for i in range(first, stop):
        s, c = sums[i - origin], counts[i - origin]
        p, end = starts[i], starts[i + 1]
        total = 0
        for q in range(p, end):
            total += length[q]
        direct = total < (width - (i - origin)) // 2
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
            for j in range(i - origin, width):
                s[j] += buffer[j, 0]
                c[j] += np.uint32(buffer[j, 1])
                buffer[j, 0] = 0.0
                buffer[j, 1] = 0.0
    return touched


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

    r = (N Σz_i z_j − Σz_i Σz_j) / (spread_i spread_j), spread_i = √(N Σz_i² − (Σz_i)²). Pairs of latents with
    n ≥ min_fired and spread > 0 count.

    Args:
        sums, counts: [t, F − origin] of :func:`add_pairs`.
        total: N.
        histogram: [B] over −1 … 1, added to.
        found_pairs: [capacity, 2], found_r: [capacity]: filled with the pairs |r| > threshold and n_ij ≥ min_both.
        near_r, near_id: [F, m] the m largest r of each latent so far, descending (n_ij ≥ 1).

    Returns:
        How many pairs are beyond the threshold; where that exceeds the capacity, the rest was counted only.
    """
    bins, m, found = len(histogram), near_r.shape[1], 0
    for a in range(sums.shape[0]):
        i = origin + a
        if n[i] < min_fired or spread[i] <= 0:
            continue
        for b in range(a + 1, sums.shape[1]):
            j = origin + b
            if n[j] < min_fired or spread[j] <= 0:
                continue
            r = (total * sums[a, b] - s1[i] * s1[j]) / (spread[i] * spread[j])
            r = min(1.0, max(-1.0, r))
            histogram[min(bins - 1, int((r + 1.0) * 0.5 * bins))] += 1
            both = counts[a, b]
            if both == 0:
                continue
            if abs(r) > threshold and both >= min_both:
                if found < len(found_r):
                    found_pairs[found, 0] = i
                    found_pairs[found, 1] = j
                    found_r[found] = r
                found += 1
            for me, other in ((i, j), (j, i)):
                if r > near_r[me, m - 1]:
                    slot = m - 1
                    while slot > 0 and near_r[me, slot - 1] < r:
                        near_r[me, slot] = near_r[me, slot - 1]
                        near_id[me, slot] = near_id[me, slot - 1]
                        slot -= 1
                    near_r[me, slot] = r
                    near_id[me, slot] = other
    return found


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
    first: int,
    stop: int,
) -> None:
    """For kept entries of this shard, the latent's activation at each token around: heat[i, slot, before + δ].

    Args:
        start_row: the cache row of the shard's first row; its rows are whole sequences of ctx.
        indptr, latents, values: the shard's codes, row-major, latents ascending.
        heat: [F, K, before + 1 + after], 0 outside the sequence.
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
                low, high = indptr[r], indptr[r + 1]
                while low < high:
                    mid = (low + high) >> 1
                    if latents[mid] < i:
                        low = mid + 1
                    else:
                        high = mid
                if low < indptr[r + 1] and latents[low] == i:
                    out[w] = values[low]


@compiled
def by_bin(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    bin_of: NDArray[np.int32],
    counts: NDArray[np.int64],
    sums: NDArray[np.float64],
    first: int,
    stop: int,
) -> None:
    """counts[i, bin_of[row]] += 1 and sums[…] += z over the latent-major entries; a bin < 0 is left out."""
    for i in range(first, stop):
        for p in range(starts[i], starts[i + 1]):
            b = bin_of[rows[p]]
            if b >= 0:
                counts[i, b] += 1
                sums[i, b] += values[p]


@compiled
def value_histogram(
    starts: NDArray[np.int64],
    values: NDArray[np.float32],
    lowest: float,
    per_octave: int,
    histogram: NDArray[np.int64],
    first: int,
    stop: int,
) -> None:
    """Counts of log₂ z in bins of 1/per_octave from `lowest` up; the outermost bins hold what lies beyond."""
    bins = histogram.shape[1]
    for i in range(first, stop):
        for p in range(starts[i], starts[i + 1]):
            b = int(np.floor((np.log2(np.float64(values[p])) - lowest) * per_octave))
            histogram[i, min(bins - 1, max(0, b))] += 1


@compiled
def shifted_bins(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    slot: NDArray[np.uint16],
    counts: NDArray[np.int32],
    first: int,
    stop: int,
) -> None:
    """counts[i, slot[row, b]] += 1 for all replicates b: the bins that a latent's firings fall into after random
    shifts.

    Args:
        slot: [R, replicates] b · bins + (bin of the row's shifted position); 65535 in a row that is left out.
        counts: [F, replicates · bins].
    """
    replicates = slot.shape[1]
    for i in range(first, stop):
        c = counts[i]
        for p in range(starts[i], starts[i + 1]):
            where = slot[rows[p]]
            if where[0] == 65535:
                continue
            for b in range(replicates):
                c[where[b]] += 1
