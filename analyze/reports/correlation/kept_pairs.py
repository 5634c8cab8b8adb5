"""Pair sums of wide dictionaries: the codes of the pass kept in a file, and pairs counted latent by latent afterwards.

The triangle of PairSums takes 12 bytes for each of F²/2 pairs: 103 GB for 131,072 latents. Here nothing grows with F²:
16 bytes on disk for each active code (N·k of them), F sums for each thread, and a table of where each latent's codes
begin, 4 F bytes for every PART_ENTRIES codes. The files are mapped, so a machine with room for them in memory reads
them from there. The numbers are those of the triangle, up to the order in which float64 sums are added.
"""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.met_pairs import Asked, Kept, Nearest, Views, look_up_met, part_of, scan_met, unmet_histogram
from ....shared.codes.moments import CodeMoments
from ....shared.codes.parallel import over_latents, threads
from ....shared.codes.sparse import SparseCodes
from ...stream.scratch_file import ScratchFile
from .pair_sums import MAX_ROWS, PairSums
from .rows_apart import RowsApart
from .scan import BINS, NONE, Scan

PART_ENTRIES = 8 << 20
"""Codes collected before they are sorted by latent and written; about 40 bytes each while that happens."""

ENTRY_BYTES = 16
"""On disk, for each active code."""

STATE_BYTES = 1 << 30
"""The lists of neighbours of all threads together are kept below this: fewer threads scan at once beyond it."""


def pairs_for(n_latents: int, folder: Path, triangle_gb: float) -> PairSums | KeptPairs:
    """What counts the pairs of F latents: the triangle where it is small enough, else the codes kept in `folder`."""
    if fits(n_latents, triangle_gb):
        return PairSums(n_latents)
    return KeptPairs(n_latents, folder)


def fits(n_latents: int, triangle_gb: float) -> bool:
    """Whether the triangle of F latents takes at most that many GB."""
    return PairSums.bytes_needed(n_latents) <= triangle_gb * 1e9


class KeptPairs:
    """Collects codes, and afterwards scans and looks up their pairs. Stands where PairSums does.

    Args:
        n_latents: F.
        folder: where the two files lie; they are removed with this object.
        part_entries: codes in one part.
    """

    def __init__(self, n_latents: int, folder: Path, part_entries: int = PART_ENTRIES) -> None:
        self.n_latents = n_latents
        self.part_entries = part_entries
        self.n_rows = 0
        self.work = np.zeros(n_latents)
        self._pending: list[SparseCodes] = []
        self._starts: list[NDArray[np.int32]] = []
        self._sizes: list[int] = []
        self._files = (ScratchFile(folder, "entries"), ScratchFile(folder, "places"))

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to another process, which merges it."""
        self.flush()
        return self.__dict__

    def add(self, codes: SparseCodes) -> None:
        """Add rows. Raises OverflowError for more of them than a count can hold."""
        if self.n_rows + codes.n_rows > MAX_ROWS:
            raise OverflowError(f"pair counts hold at most {MAX_ROWS} rows")
        self.n_rows += codes.n_rows
        self._pending.append(codes)
        if sum(len(part.latents) for part in self._pending) >= self.part_entries:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        codes = SparseCodes.stack(self._pending) if self._pending else None
        self._pending = []
        if codes is None or not len(codes.latents):
            return
        starts, places, entries = part_of(codes)
        for file, array in zip(self._files, (entries, places), strict=True):
            file.append(array)
        partners = np.zeros(len(places) + 1)
        np.cumsum(places[:, 1], out=partners[1:])
        self.work += np.diff(partners[starts]) + np.diff(starts)
        self._starts.append(starts)
        self._sizes.append(len(places))

    def merge(self, other: KeptPairs) -> None:
        """Take the other's rows over, and its files with them."""
        self.flush()
        other.flush()
        self.n_rows += other.n_rows
        self.work += other.work
        self._starts += other._starts
        self._sizes += other._sizes
        for mine, theirs in zip(self._files, other._files, strict=True):
            mine.take(theirs)

    def kept(self) -> Kept:
        """The codes as the compiled loops take them, mapped from their files."""
        self.flush()
        entries, places = (file.mapped(np.int32).reshape(-1, 2) for file in self._files)
        starts = np.stack(self._starts) if self._starts else np.zeros((0, self.n_latents + 1), np.int32)
        base = np.cumsum([0, *self._sizes], dtype=np.int64)[:-1]
        return Kept.over(base, starts, places, entries, np.zeros(0))

    def lookup(self, i: NDArray[Any], j: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(Σ z_i z_j, n_ij) of pairs [P] of different latents; i and j may come in either order."""
        low, high = np.minimum(i, j).astype(np.int64), np.maximum(i, j).astype(np.int64)
        order = np.lexsort((high, low))
        latents, begin = np.unique(low[order], return_index=True)
        begin = np.append(begin, len(order)).astype(np.int64)
        wanted, sums, counts = high[order], np.zeros(len(order)), np.zeros(len(order), np.int64)
        kept = self.kept()
        over_latents(
            lambda first, stop: look_up_met(kept, latents, begin, wanted, sums, counts, first, stop),
            self.work[latents] + 1.0,
        )
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return sums[back], counts[back]

    def scan(
        self,
        moments: list[CodeMoments],
        first_rows: RowsApart,
        massive: RowsApart,
        asked: Asked,
        neighbours: int,
    ) -> list[Scan]:
        """r of all pairs over each set of rows, in one visit of the pairs that have met.

        Args:
            moments: over the rows that were added, over these and `first_rows`, and, if there are massive rows, over
                these without them.
            neighbours: most correlated latents kept per latent, over the first set of rows.
        """
        views = Views(
            np.array([float(one.rows) for one in moments]),
            *(np.stack([getattr(one, key) for one in moments]) for key in ("n", "sum", "spread", "ratio")),
        )
        at_first, in_massive = (Kept.of(*rows.codes()) for rows in (first_rows, massive))
        kept, n_views = self.kept(), len(moments)
        states: SimpleQueue[tuple[Nearest, NDArray[np.int64], NDArray[np.int64]]] = SimpleQueue()
        size = self.n_latents * (12 * neighbours + 4 * n_views)
        everyone = [_state(self.n_latents, n_views, neighbours) for _ in range(min(threads(), STATE_BYTES // size + 1))]
        for one in everyone:
            states.put(one)
        parts: list[tuple[int, tuple[Any, ...]]] = []

        def run(first: int, stop: int) -> None:
            state = states.get()
            try:
                nearest, histogram, never = state
                part = scan_met(kept, at_first, in_massive, views, asked, nearest, histogram, never, first, stop)
                parts.append((first, part))
            finally:
                states.put(state)

        over_latents(run, self.work + 1.0)
        found = [part for _, part in sorted(parts, key=lambda one: one[0])]
        return [_scan_of(v, found, everyone, views, asked) for v in range(n_views)]


def _state(n_latents: int, n_views: int, neighbours: int) -> tuple[Nearest, NDArray[np.int64], NDArray[np.int64]]:
    """What one thread fills: the nearest of each latent, and the two histograms."""
    shape = (n_latents, neighbours)
    nearest = Nearest(
        np.full(shape, NONE, np.float32),
        np.full(shape, -1, np.int32),
        np.zeros(shape, np.uint32),
        np.full((n_views, n_latents), NONE, np.float32),
    )
    return nearest, np.zeros((n_views, BINS), np.int64), np.zeros((n_views, BINS), np.int64)


def _scan_of(
    view: int,
    found: list[tuple[Any, ...]],
    states: list[tuple[Nearest, NDArray[np.int64], NDArray[np.int64]]],
    views: Views,
    asked: Asked,
) -> Scan:
    """One set of rows, from what the ranges of latents found and the threads kept."""
    keys = np.concatenate([part[1] for part in found] or [np.zeros((0, 3), np.int32)])
    r = np.concatenate([part[2] for part in found] or [np.zeros(0)])
    here = np.flatnonzero(keys[:, 0] == view)
    here = here[np.lexsort((keys[here, 2], keys[here, 1]))][: asked.listed]
    scored = (views.n[view] >= asked.min_fired) & (views.spread[view] > 0)
    histogram = unmet_histogram(np.sort(views.ratio[view, scored]), BINS)
    for _, met, never in states:
        histogram += met[view] - never[view]
    if view:
        largest = np.maximum.reduce([nearest.largest[view] for nearest, _, _ in states])
        near_r, near = largest[:, None], np.full((len(largest), 1), -1, np.int32)
        both = np.zeros((len(largest), 1), np.uint32)
    else:
        near_r, near, both = _merged([nearest for nearest, _, _ in states])
    return Scan(
        n_above=int(sum(part[0][view] for part in found)),
        pairs=keys[here, 1:],
        r=r[here],
        histogram=histogram,
        near=near,
        near_r=near_r,
        near_both=both,
    )


def _merged(lists: list[Nearest]) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint32]]:
    """The nearest of each latent among those that the threads kept: largest r first, of equal r the smaller latent."""
    near_r, near, both = lists[0][:3]
    width = near.shape[1]
    for other in lists[1:]:
        for start in range(0, len(near), 1 << 16):  # a stretch of latents, to bound what the sort holds
            part = slice(start, start + (1 << 16))
            r = np.concatenate([near_r[part], other.r[part]], axis=1)
            ids = np.concatenate([near[part], other.id[part]], axis=1)
            counts = np.concatenate([both[part], other.both[part]], axis=1)
            order = np.lexsort((ids, -r), axis=1)[:, :width]
            near_r[part], near[part], both[part] = (np.take_along_axis(a, order, 1) for a in (r, ids, counts))
    return near_r, near, both
