"""Σ z_i z_j and n_ij of every pair of latents, exactly, over any number of rows.

The upper triangle is kept in blocks of rows: float64 sums and uint32 counts, 12 bytes for each of the F(F+1)/2 pairs
(F = 18,432: 2.1 GB). The codes stay sparse: N·k²/2 multiply-adds, not N·F². They are summed on the CPU, wherever the
coder runs: dense products on a device would need F²/k² times the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.pairs import add_pairs, partner_suffixes, suffixes
from ....shared.codes.parallel import over_latents
from ....shared.codes.sparse import SparseCodes

BLOCK = 512
"""Latents in one block of rows of the triangle."""

BUFFER_ENTRIES = 6 << 20
"""Entries collected before they are added to the triangle, which is passed over once each time; 24 bytes each."""

MAX_ROWS = 2**32 - 1
"""What a count can hold."""


@dataclass(frozen=True)
class PairBlock:
    """Rows first … first + t of the triangle, columns first … F: sums and counts [t, F − first].

    The part left of the diagonal is not filled.
    """

    first: int
    sums: NDArray[np.float64]
    counts: NDArray[np.uint32]

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.first + len(self.sums)


class PairSums:
    """Accumulates Σ z_i z_j and n_ij for i ≤ j.

    Args:
        n_latents: F.
        buffer_entries: entries collected before they are added to the triangle.
    """

    def __init__(self, n_latents: int, buffer_entries: int = BUFFER_ENTRIES) -> None:
        self.n_latents = n_latents
        self.buffer_entries = buffer_entries
        self.n_rows = 0
        self._pending: list[SparseCodes] = []
        self._pending_map: list[NDArray[np.int64]] = []
        self._entries = 0
        starts = range(0, n_latents, BLOCK)
        shapes = [(min(BLOCK, n_latents - s), n_latents - s) for s in starts]
        self._first = list(starts)
        self._sums = [np.zeros(shape) for shape in shapes]
        self._counts = [np.zeros(shape, np.uint32) for shape in shapes]

    @staticmethod
    def bytes_needed(n_latents: int) -> int:
        """Bytes of the triangle, which :class:`PairSums` holds whatever the number of rows."""
        shapes = [(min(BLOCK, n_latents - s), n_latents - s) for s in range(0, n_latents, BLOCK)]
        return 12 * sum(rows * columns for rows, columns in shapes)

    def add(self, codes: SparseCodes, partner: NDArray[np.int64] | None = None) -> None:
        """Add rows.

        Args:
            partner: [R] pair latent i of row r with latent j > i of row partner[r], instead of the same row: a
                permutation gives the null in which nothing but chance correlates. The diagonal is then not counted.

        Raises:
            OverflowError: more rows than a count can hold.
        """
        if self.n_rows + codes.n_rows > MAX_ROWS:
            raise OverflowError(f"pair counts hold at most {MAX_ROWS} rows")
        # Rows of several calls are stacked before they are added: partners move along with their own call's rows.
        offset = sum(part.n_rows for part in self._pending)
        self.n_rows += codes.n_rows
        self._pending.append(codes)
        if partner is not None:
            self._pending_map.append(partner + offset)
        self._entries += len(codes.latents)
        if self._entries >= self.buffer_entries:
            self.flush()

    def flush(self) -> None:
        """Bring what was added into the triangle."""
        if not self._pending:
            return
        codes = SparseCodes.stack(self._pending)
        partner = np.concatenate(self._pending_map) if self._pending_map else None
        self._pending, self._pending_map, self._entries = [], [], 0
        self._add_pairs(codes, partner)

    def _add_pairs(self, codes: SparseCodes, partner: NDArray[np.int64] | None) -> None:
        """Latent by latent over the rows on which it fires, without forming anything dense but the triangle."""
        starts, rows, entry = codes.by_latent
        if partner is None:
            begin, length = suffixes(rows, entry, codes.indptr)
        else:
            begin, length = partner_suffixes(starts, rows, partner, codes.indptr, codes.latents)
        # Latents and values side by side, so that one cache line holds both: visiting rows, not multiplying, takes the
        # time. Both columns are views into one array of 8-byte entries.
        pairs = np.empty((len(codes.latents), 2), np.int32)
        pairs[:, 0] = codes.latents
        pairs.view(np.float32)[:, 1] = codes.values
        left, latents, values = codes.latent_values, pairs[:, 0], pairs.view(np.float32)[:, 1]
        work = np.zeros(len(length) + 1)
        np.cumsum(length, out=work[1:])

        def run(first: int, stop: int) -> None:
            # Each call of the kernel stays within one block of rows; threads own disjoint rows of the triangle.
            while first < stop:
                block = first // BLOCK
                end = min(stop, (block + 1) * BLOCK)
                add_pairs(
                    starts=starts,
                    left=left,
                    begin=begin,
                    length=length,
                    latents=latents,
                    values=values,
                    sums=self._sums[block],
                    counts=self._counts[block],
                    origin=self._first[block],
                    first=first,
                    stop=end,
                )
                first = end

        # The work of latent i: its pairs, and the pass over its row of the triangle.
        over_latents(run, np.diff(work[starts]) + np.arange(self.n_latents, 0, -1))

    def merge(self, other: PairSums) -> None:
        """Add another accumulator's rows; the sums are exact, up to float64's rounding."""
        self.flush()
        other.flush()
        self.n_rows += other.n_rows
        for mine, theirs in zip(self._sums, other._sums, strict=True):
            mine += theirs
        for own, others in zip(self._counts, other._counts, strict=True):
            own += others

    def blocks(self) -> Iterator[PairBlock]:
        """The triangle, block by block, in order."""
        self.flush()
        for first, sums, counts in zip(self._first, self._sums, self._counts, strict=True):
            yield PairBlock(first, sums, counts)

    def lookup(self, i: NDArray[Any], j: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(Σ z_i z_j, n_ij) of pairs [P] of latents; i and j may come in either order."""
        self.flush()
        low, high = np.minimum(i, j).astype(np.int64), np.maximum(i, j).astype(np.int64)
        sums, counts = np.zeros(len(low)), np.zeros(len(low), np.int64)
        for block, first in enumerate(self._first):
            here = np.flatnonzero(low // BLOCK == block)
            if len(here):
                at = (low[here] - first, high[here] - first)
                sums[here], counts[here] = self._sums[block][at], self._counts[block][at]
        return sums, counts
