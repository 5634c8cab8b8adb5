"""The compiled loops over pairs of latents that have met, of codes kept in parts: nothing here is larger than F.

For one latent i at a time the sums over its rows are formed in a dense row of its partners j > i (Gustavson's
algorithm, as in pairs.py) and read at once, for the partners that were met alone. N·k²/2 multiply-adds, and memory for
F sums whatever the number of pairs: what a dictionary of 10⁵ to 10⁶ latents has in place of the triangle of pairs.py.

Pairs that never fire together are not visited. Their r is −a_i a_j with a = mean / standard deviation, so how many of
them fall into each bin of the histogram follows from the F numbers a (:func:`unmet_histogram`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .pairs import LINE_ENTRIES, PREFETCH_ROWS, bin_of, offer, r_of_sums
from .sparse import SparseCodes


class Kept(NamedTuple):
    """Codes of rows in P parts, row by row, and where each latent's are: E entries in all.

    Attributes:
        base: [P] where each part begins in the arrays [E].
        starts: [P, F + 1] where each latent's part of `places` begins, from the part's own beginning.
        places: [E, 2] latent by latent within each part: the place of an entry in its part, and how many entries follow
            it in its row. The latents of a row ascend, so these are its partners j > i.
        latents, values: [E] row by row.
        times: [E] how often the row of each entry of `places` occurs; empty: every row once.
    """

    base: NDArray[np.int64]
    starts: NDArray[np.int32]
    places: NDArray[np.int32]
    latents: NDArray[np.int32]
    values: NDArray[np.float32]
    times: NDArray[np.float64]

    @classmethod
    def of(cls, codes: SparseCodes, times: NDArray[np.int64] | None = None) -> Kept:
        """Of one part in memory.

        Args:
            times: [R] how often each row occurs; None: once.
        """
        starts, places, entries = part_of(codes)
        often = np.zeros(0) if times is None else times.astype(np.float64)[codes.by_latent.rows]
        return cls.over(np.zeros(1, np.int64), starts[None], places, entries, often)

    @classmethod
    def over(
        cls,
        base: NDArray[np.int64],
        starts: NDArray[np.int32],
        places: NDArray[np.int32],
        entries: NDArray[np.int32],
        times: NDArray[np.float64],
    ) -> Kept:
        """Of parts side by side; `entries` as in :func:`part_of`."""
        if len(entries) < 2:  # its columns would be contiguous: another type to the compiler, which would start again
            entries = np.concatenate([entries, np.zeros((2, 2), np.int32)])
        return cls(base, starts, places, entries[:, 0], entries.view(np.float32)[:, 1], times)


def part_of(codes: SparseCodes) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """(starts [F + 1], places [E, 2], entries [E, 2]) of one part; an entry is its latent, then the bits of its value.

    Latents and values lie side by side, so that one cache line holds both.
    """
    starts, rows, entry = codes.by_latent
    places = np.empty((len(entry), 2), np.int32)
    places[:, 0] = entry
    places[:, 1] = codes.indptr[1:][rows] - entry - 1
    entries = np.empty((len(entry), 2), np.int32)
    entries[:, 0] = codes.latents
    entries.view(np.float32)[:, 1] = codes.values
    return starts.astype(np.int32), places, entries


class Views(NamedTuple):
    """Moments of the latents over V sets of rows: all [V, F] but `total` [V], the numbers of rows.

    The first is over the kept rows, the second adds the rows at position 0, the third (if there is one) is the first
    without massive rows. `ratio`: mean / standard deviation, 0 where a latent does not vary.
    """

    total: NDArray[np.float64]
    n: NDArray[np.int64]
    sum: NDArray[np.float64]
    spread: NDArray[np.float64]
    ratio: NDArray[np.float64]


class Nearest(NamedTuple):
    """What a scan keeps of each latent's pairs: near_* [F, m] over the first set of rows, largest r first (of equal r
    the smaller latent); largest [V, F] the largest r over each set of rows."""

    r: NDArray[np.float32]
    id: NDArray[np.int32]
    both: NDArray[np.uint32]
    largest: NDArray[np.float32]


class Asked(NamedTuple):
    """Which pairs are scored and listed: both latents fire on ≥ min_fired rows; |r| > threshold and ≥ min_both rows
    with both. Listing ends with the latent that brings it to `listed` pairs."""

    threshold: float
    min_fired: int
    min_both: int
    listed: int


@compiled
def _gather(
    i: int,
    kept: Kept,
    into: NDArray[np.float64],
    before: NDArray[np.float64],
    partners: NDArray[np.int32],
    met: int,
) -> int:
    """into[j] += (z_i z_j, 1) over the rows of latent i, j > i; partners met for the first time join `partners`.

    Args:
        into: [F, 2]. before: [F, 2] sums of other rows that were gathered before, or empty.
        partners: [F + 1], of which `met` are filled.

    Returns:
        How many partners are filled now.
    """
    weighted, looks = len(kept.times) > 0, len(before) > 0
    latents, values, places = kept.latents, kept.values, kept.places
    touched = 0
    for part in range(len(kept.base)):
        base = kept.base[part]
        p, end = base + kept.starts[part, i], base + kept.starts[part, i + 1]
        while p < end:
            # As in add_pairs: one load for each cache line of a group of rows first, so that their waits overlap.
            last = min(p + PREFETCH_ROWS, end)
            for q in range(p, last):
                own = base + places[q, 0]
                for ahead in range(own, own + 1 + places[q, 1], LINE_ENTRIES):
                    touched += latents[ahead]
            for q in range(p, last):
                own = base + places[q, 0]
                times = kept.times[q] if weighted else 1.0
                z = np.float64(values[own]) * times
                for e in range(own + 1, own + 1 + places[q, 1]):
                    j = latents[e]
                    # Written always, kept only where j is first met: no branch to mispredict.
                    partners[met] = j
                    if looks:
                        met += into[j, 1] + before[j, 1] == 0.0
                    else:
                        met += into[j, 1] == 0.0
                    into[j, 0] += z * values[e]
                    into[j, 1] += times
            p = last
    return met if touched > -(2**62) else 0  # always `met`; the compiler keeps the loads


# Long, since half of it is the signature and its meaning; the loop is one piece, for its state is local.
@compiled
def scan_met(
    kept: Kept,
    first_rows: Kept,
    massive: Kept,
    views: Views,
    asked: Asked,
    nearest: Nearest,
    histogram: NDArray[np.int64],
    never: NDArray[np.int64],
    first: int,
    stop: int,
) -> tuple[Any, ...]:
    """Pearson's r of every pair i < j, first ≤ i < stop, that has met, over each set of rows.

    Args:
        first_rows, massive: the rows at position 0, and the massive ones among the kept.
        nearest: updated. histogram: [V, bins] of r, added to. never: [V, bins] added to: of the same pairs, −a_i a_j,
            their r had they never met.

    Returns:
        (number of pairs beyond the threshold [V]; the listed ones: (set of rows, i, j) [P, 3] and r [P]).
    """
    n_views, n_latents, bins = len(views.total), views.n.shape[1], histogram.shape[1]
    sums, at_first, in_massive = np.zeros((n_latents, 2)), np.zeros((n_latents, 2)), np.zeros((n_latents, 2))
    nothing = np.zeros((0, 2))
    partners, spare = np.empty(n_latents + 1, np.int32), np.empty(n_latents + 1, np.int32)
    found, listed, size = np.zeros(n_views, np.int64), np.zeros(n_views, np.int64), 0
    keys, r_listed = np.empty((1024, 3), np.int32), np.empty(1024)
    for i in range(first, stop):
        if views.n[:, i].max() < asked.min_fired:
            continue
        met = _gather(i, kept, sums, nothing, partners, 0)
        met = _gather(i, first_rows, at_first, sums, partners, met)
        if n_views > 2:
            _gather(i, massive, in_massive, nothing, spare, 0)
        for v in range(n_views):
            if views.n[v, i] < asked.min_fired or views.spread[v, i] <= 0:
                continue
            lists = listed[v] < asked.listed
            for j in partners[:met]:
                if views.n[v, j] < asked.min_fired or views.spread[v, j] <= 0:
                    continue
                product, both = sums[j, 0], sums[j, 1]
                if v == 1:
                    product, both = product + at_first[j, 0], both + at_first[j, 1]
                elif v == 2:
                    product, both = product - in_massive[j, 0], both - in_massive[j, 1]
                if both == 0.0:
                    continue
                spreads = views.spread[v, i] * views.spread[v, j]
                r = r_of_sums(views.total[v], product, views.sum[v, i], views.sum[v, j], spreads)
                histogram[v, bin_of(r, bins)] += 1
                never[v, bin_of(max(-1.0, -(views.ratio[v, i] * views.ratio[v, j])), bins)] += 1
                nearest.largest[v, i] = max(nearest.largest[v, i], np.float32(r))
                nearest.largest[v, j] = max(nearest.largest[v, j], np.float32(r))
                if v == 0:
                    offer(nearest.r[i], nearest.id[i], nearest.both[i], r, j, int(both))
                    offer(nearest.r[j], nearest.id[j], nearest.both[j], r, i, int(both))
                if abs(r) > asked.threshold and both >= asked.min_both:
                    found[v] += 1
                    if lists:
                        if size == len(keys):
                            wider, longer = np.empty((2 * size, 3), np.int32), np.empty(2 * size)
                            wider[:size], longer[:size] = keys, r_listed
                            keys, r_listed = wider, longer
                        keys[size, 0], keys[size, 1], keys[size, 2], r_listed[size] = v, i, j, r
                        listed[v] += 1
                        size += 1
        for j in partners[:met]:
            sums[j] = 0.0
            at_first[j] = 0.0
            in_massive[j] = 0.0
    return found, keys[:size], r_listed[:size]


@compiled
def look_up_met(
    kept: Kept,
    low: NDArray[np.int64],
    begin: NDArray[np.int64],
    high: NDArray[np.int64],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    first: int,
    stop: int,
) -> None:
    """Fills (Σ z_i z_j, n_ij) [P] of pairs grouped by their smaller latent.

    Args:
        low: [m] the smaller latents. high: [P] the larger ones, those of low[g] from begin[g] to begin[g + 1].
        first, stop: the groups to do. A pair of a latent with itself is left at 0.
    """
    n_latents = kept.starts.shape[1] - 1
    gathered, nothing = np.zeros((n_latents, 2)), np.zeros((0, 2))
    partners = np.empty(n_latents + 1, np.int32)
    for g in range(first, stop):
        met = _gather(low[g], kept, gathered, nothing, partners, 0)
        for p in range(begin[g], begin[g + 1]):
            sums[p] = gathered[high[p], 0]
            counts[p] = np.int64(gathered[high[p], 1])
        for j in partners[:met]:
            gathered[j] = 0.0


@compiled
def unmet_histogram(ratio: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """How many of all pairs have r = −a_i a_j in each of `bins` equal bins over −1 … 1: what r is if they never met.

    For a fixed bin the pairs at or above it are, for each i in ascending order of a, a prefix of the larger a_j, and
    the prefixes only shrink: F steps for each bin, no pair is visited.

    Args:
        ratio: a = mean / standard deviation, ascending, > 0.
    """
    n = len(ratio)
    counts = np.zeros(bins, np.int64)
    above = n * (n - 1) // 2
    for b in range(1, bins + 1):
        here, limit = 0, n
        for i in range(n):
            while limit > i + 1 and bin_of(max(-1.0, -(ratio[i] * ratio[limit - 1])), bins) < b:
                limit -= 1
            if limit <= i + 1:
                break
            here += limit - i - 1
        counts[b - 1] = above - here
        above = here
        if here == 0:
            break
    return counts
