"""The codes of a pass, shard by shard in a file: for what is too large to hold of all latents at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...shared.codes.sparse import SparseCodes
from .batches import ShardRows
from .scratch_file import ScratchFile
from .windows import windows

ENTRY_BYTES = 8
"""On disk, for each active code."""


@dataclass(frozen=True)
class KeptShard:
    """One shard: its number, the cache row of its first row, tokens of a sequence; rows and active codes."""

    shard: int
    start: int
    ctx: int
    rows: int
    entries: int


class KeptCodes:
    """Codes of whole shards, read back for some latents at a time.

    Args:
        n_latents: F.
        folder: where the file lies; it is removed with this object.
    """

    def __init__(self, n_latents: int, folder: Path) -> None:
        self.n_latents = n_latents
        self._shards: list[KeptShard] = []
        self._file = ScratchFile(folder, "codes")
        self._read: list[tuple[KeptShard, SparseCodes]] = []

    def add(self, rows: ShardRows, codes: SparseCodes) -> None:
        """Keep the codes of a shard."""
        self._shards.append(KeptShard(rows.shard, rows.start, rows.ctx, len(rows), len(codes.latents)))
        self._file.append(codes.l0.astype(np.int32), codes.latents, codes.values)

    def merge(self, other: KeptCodes) -> None:
        """Take the other's shards over, and its file with them."""
        self._shards += other._shards
        self._file.take(other._file)

    def _codes(self) -> list[tuple[KeptShard, SparseCodes]]:
        """Every shard with its codes, mapped from the file, by ascending rows. Nothing can be added afterwards."""
        if not self._read:
            words, at = self._file.mapped(np.int32), 0
            for one in self._shards:
                l0, latents, values = np.split(
                    words[at : at + one.rows + 2 * one.entries], [one.rows, one.rows + one.entries]
                )
                at += one.rows + 2 * one.entries
                indptr = np.zeros(one.rows + 1, np.int64)
                np.cumsum(l0, out=indptr[1:])
                self._read.append((one, SparseCodes(indptr, latents, values.view(np.float32), self.n_latents)))
            self._read.sort(key=lambda read: read[0].start)
        return self._read

    def of(self, first: int, stop: int) -> Iterator[tuple[int, SparseCodes]]:
        """(number of the shard, its codes of the latents first ≤ i < stop, renumbered from 0), by ascending shards."""
        new_id = np.full(self.n_latents, -1, np.int32)
        new_id[first:stop] = np.arange(stop - first, dtype=np.int32)
        for one, codes in self._codes():
            yield one.shard, codes.columns(new_id, stop - first)

    def around(self, latent: int, row: NDArray[np.int64], before: int, after: int) -> NDArray[np.float32]:
        """A latent's activations around rows of the cache [K] (−1: none): [K, before + 1 + after].

        0 outside the row's sequence.
        """
        out: NDArray[np.float32] = np.zeros((1, len(row), before + 1 + after), np.float32)
        score, slot = (row >= 0).astype(np.float64)[None], np.arange(len(row), dtype=np.int32)[None]
        shards = self._codes()
        starts = np.array([one.start for one, _ in shards])
        for place in np.unique(np.searchsorted(starts, row[row >= 0], side="right") - 1).tolist():
            one, codes = shards[place]
            windows(
                score, row[None], slot, one.start, one.ctx, codes.indptr, codes.latents, codes.values,
                before, after, out, latent, 0, 1,
            )  # fmt: skip
        around: NDArray[np.float32] = out[0]
        return around
