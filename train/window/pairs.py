"""Compiled loops over sparse codes: scatters with a data-dependent address, which NumPy has no vectorised form of.

SciPy's sparse XᵀX is the alternative for pairs: it takes ten times as long, and forms what is then thrown away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...shared.codes.compiled import compiled

BINS = 40
"""Bins of the histogram of r."""


@compiled
def arrange(
    indptr: NDArray[np.int64], latents: NDArray[np.int32], values: NDArray[np.float32], n_latents: int
) -> tuple[Any, ...]:
    """Entries in both orders (two counting sorts).

    Returns:
        (starts [F + 1], rows [E], own [E]: latent by latent, the row of each entry and its place in the other order;
        by_row [E], value [E]: row by row, latents ascending).
    """
    starts = np.zeros(n_latents + 1, np.int64)
    for e in range(len(latents)):
        starts[latents[e] + 1] += 1
    for i in range(n_latents):
        starts[i + 1] += starts[i]
    place = starts[:-1].copy()
    rows = np.empty(len(latents), np.int32)
    unsorted = np.empty(len(latents), np.float32)
    for r in range(len(indptr) - 1):
        for e in range(indptr[r], indptr[r + 1]):
            p = place[latents[e]]
            place[latents[e]] = p + 1
            rows[p] = r
            unsorted[p] = values[e]
    own = np.empty(len(latents), np.int64)
    by_row = np.empty(len(latents), np.int32)
    value = np.empty(len(latents), np.float32)
    place = indptr[:-1].copy()
    for i in range(n_latents):
        for p in range(starts[i], starts[i + 1]):
            e = place[rows[p]]
            place[rows[p]] = e + 1
            by_row[e] = i
            value[e] = unsorted[p]
            own[p] = e
    return starts, rows, own, by_row, value


@compiled
def scan(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    own: NDArray[np.int64],
    by_row: NDArray[np.int32],
    value: NDArray[np.float32],
    indptr: NDArray[np.int64],
    rest: NDArray[np.bool_],
    n_rest: int,
    fired: NDArray[np.int64],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    n_all: int,
    fired_all: NDArray[np.int64],
    mean_all: NDArray[np.float64],
    std_all: NDArray[np.float64],
    threshold: float,
    jaccard: float,
    min_fired: int,
    min_both: int,
    capacity: int,
    begin: int,
    end: int,
) -> tuple[Any, ...]:
    """Pearson's r of every pair i < j, begin ≤ i < end, that shares a row: one latent i at a time in a dense buffer
    over j. Ranges of i may be scanned by different threads.

    Args:
        starts … value: of `arrange`. rest: [R] the rows without position 0.
        fired, mean, std: [F] over these rows; *_all: over all rows.

    Returns:
        (pairs listed, those with |r| > threshold or n_ij ≥ jaccard·(n_i + n_j − n_ij); pairs with |r| > threshold over
        all rows; the listed i, j, r, both [capacity]; largest [F], 0 without a partner; histogram [BINS]).
    """
    n_latents = len(starts) - 1
    sums, sums_all = np.zeros(n_latents), np.zeros(n_latents)
    both, both_all = np.zeros(n_latents, np.int64), np.zeros(n_latents, np.int64)
    touched = np.empty(n_latents, np.int64)
    out_i, out_j = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    out_r, out_both = np.empty(capacity), np.empty(capacity, np.int64)
    largest = np.zeros(n_latents)
    histogram = np.zeros(BINS, np.int64)
    found, found_all = 0, 0
    for i in range(begin, end):
        if fired_all[i] < min_fired:
            continue
        n_touched = 0
        for p in range(starts[i], starts[i + 1]):
            r = rows[p]
            first = own[p]
            z = np.float64(value[first])
            if rest[r]:
                for e in range(first + 1, indptr[r + 1]):
                    j = by_row[e]
                    if both[j] == 0 and both_all[j] == 0:
                        touched[n_touched] = j
                        n_touched += 1
                    sums[j] += z * value[e]
                    both[j] += 1
            else:
                for e in range(first + 1, indptr[r + 1]):
                    j = by_row[e]
                    if both[j] == 0 and both_all[j] == 0:
                        touched[n_touched] = j
                        n_touched += 1
                    sums_all[j] += z * value[e]
                    both_all[j] += 1
        for t in range(n_touched):
            j = touched[t]
            if both[j] >= min_both and fired[i] >= min_fired and fired[j] >= min_fired and std[i] > 0 and std[j] > 0:
                correlation = (sums[j] / n_rest - mean[i] * mean[j]) / (std[i] * std[j])
                correlation = min(1.0, max(-1.0, correlation))
                bin_ = int((correlation + 1.0) * 0.5 * BINS)
                histogram[min(bin_, BINS - 1)] += 1
                if correlation > largest[i]:
                    largest[i] = correlation
                if correlation > largest[j]:
                    largest[j] = correlation
                either = fired[i] + fired[j] - both[j]
                if abs(correlation) > threshold or both[j] >= jaccard * either:
                    if found < capacity:
                        out_i[found] = i
                        out_j[found] = j
                        out_r[found] = correlation
                        out_both[found] = both[j]
                    found += 1
            together = both[j] + both_all[j]
            if together >= min_both and fired_all[j] >= min_fired and std_all[i] > 0 and std_all[j] > 0:
                total = (sums[j] + sums_all[j]) / n_all - mean_all[i] * mean_all[j]
                if abs(total / (std_all[i] * std_all[j])) > threshold:
                    found_all += 1
            sums[j] = 0.0
            sums_all[j] = 0.0
            both[j] = 0
            both_all[j] = 0
    return found, found_all, out_i, out_j, out_r, out_both, largest, histogram
