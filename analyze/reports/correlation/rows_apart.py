"""The codes of a few rows, kept whole, so that figures with or without them need no second triangle of pair sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ....shared.codes.sparse import SparseCodes
from .pair_sums import PairBlock, PairSums


class RowsApart:
    """The codes of the rows at position 0, or of massive rows.

    Identical rows are stored once, with their number: those at position 0 are a function of one token and mostly
    identical, as attention is causal; massive rows are few. Their pair sums are formed block by block when needed.

    Attributes:
        rows: the bytes of a row (its latents, then as many float32 values) → how often it occurs.
    """

    def __init__(self, n_latents: int) -> None:
        self.n_latents = n_latents
        self.rows: dict[bytes, int] = {}

    def add(self, codes: SparseCodes) -> None:
        """Add rows."""
        for r in range(codes.n_rows):
            entries = slice(codes.indptr[r], codes.indptr[r + 1])
            key = codes.latents[entries].tobytes() + codes.values[entries].tobytes()
            self.rows[key] = self.rows.get(key, 0) + 1

    def merge(self, other: RowsApart) -> None:
        """Add another collector's rows."""
        for key, n in other.rows.items():
            self.rows[key] = self.rows.get(key, 0) + n

    @property
    def n_rows(self) -> int:
        """How many rows were added, repeats included."""
        return sum(self.rows.values())

    def codes(self) -> tuple[SparseCodes, NDArray[np.int64]]:
        """(the distinct rows, how often each occurs)."""
        # Latents and values are 4 bytes each: the first half of a key is the one, the second half the other.
        halves = [(key[: len(key) // 2], key[len(key) // 2 :]) for key in self.rows]
        latents = np.array(memoryview(b"".join(a for a, _ in halves)).cast("i"), np.int32)
        values = np.array(memoryview(b"".join(b for _, b in halves)).cast("f"), np.float32)
        indptr = np.zeros(len(halves) + 1, np.int64)
        np.cumsum([len(a) // 4 for a, _ in halves], out=indptr[1:])
        return SparseCodes(indptr, latents, values, self.n_latents), np.fromiter(self.rows.values(), np.int64)

    def _matrices(self) -> tuple[Any, Any, NDArray[np.int64]]:
        """The distinct rows in float64 [n, F], where they are active (1 or 0), and how often each occurs [n]."""
        codes, times = self.codes()
        x = codes.csr().astype(np.float64).tocsc()
        fires = x.copy()
        fires.data[:] = 1.0
        return x, fires, times

    def added_to(self, pairs: PairSums) -> Iterator[PairBlock]:
        """The triangle of other rows and these, block by block."""
        return self._combined(pairs, np.add)

    def taken_from(self, pairs: PairSums) -> Iterator[PairBlock]:
        """The triangle of the rows of `pairs` that are not these, which are among them, block by block."""
        return self._combined(pairs, np.subtract)

    def _combined(self, pairs: PairSums, combine: np.ufunc) -> Iterator[PairBlock]:
        """The sums and counts of each block of `pairs`, combined with those of these rows.

        A row that occurs t times adds t · z_i z_j, so one product of the distinct rows, one side weighted by t, is the
        sum over all of them. Only the columns from the block's first latent on are formed.
        """
        x, fires, times = self._matrices()
        scale = sp.diags_array(times.astype(np.float64))
        weighted, weighted_fires = sp.csc_array(scale @ x), sp.csc_array(scale @ fires)
        for block in pairs.blocks():
            if x.nnz == 0:
                yield block
                continue
            rows, columns = slice(block.first, block.stop), slice(block.first, None)
            sums = (weighted[:, rows].T @ x[:, columns]).toarray()
            counts = (weighted_fires[:, rows].T @ fires[:, columns]).toarray()
            yield PairBlock(block.first, combine(block.sums, sums), combine(block.counts, counts.astype(np.uint32)))

    def lookup(self, i: NDArray[Any], j: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(Σ z_i z_j, n_ij) of pairs [P] of latents over these rows."""
        x, fires, times = self._matrices()
        sums, counts = np.zeros(len(i)), np.zeros(len(i), np.int64)
        step = max(1, (1 << 24) // max(1, x.shape[0]))
        for start in range(0, len(i), step):
            part = slice(start, start + step)
            sums[part] = np.asarray(x[:, i[part]].multiply(x[:, j[part]]).T @ times).reshape(-1)
            counts[part] = np.asarray(fires[:, i[part]].multiply(fires[:, j[part]]).T @ times).reshape(-1)
        return sums, counts
