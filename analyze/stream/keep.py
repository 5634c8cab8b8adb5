"""Per latent, a bounded list of its best entries: the largest values, or a uniform sample. Merges exactly."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...shared.codes.best import offer
from ...shared.codes.parallel import over_latents
from ...shared.codes.sparse import SparseCodes
from ...shared.hashing import mix
from .batches import ShardRows
from .windows import windows

SAMPLE_SEED = np.uint64(0x5EED)


class Keeper:
    """The K best entries of each latent.

    Args:
        k: K.
        by: "value" keeps the largest activations; "sample" a uniform sample without replacement (the K largest hashes
            of the row), which does not depend on the order of the rows.
        distinct: keep one entry per context.
        context: an entry's context is its token and so many ahead of it; None (only without `distinct`): not looked at.
        window: (before, after): also keep the latent's activation on that many tokens around; None: values and rows
            only.

    Attributes:
        score, row, value, key: [F, K], best first; score 0 where there are fewer entries.
        heat: [F, K, before + 1 + after] float32, or None; through :meth:`heat_of`.
    """

    def __init__(
        self,
        n_latents: int,
        k: int,
        by: Literal["value", "sample"] = "value",
        distinct: bool = False,
        window: tuple[int, int] | None = None,
        context: int | None = None,
    ) -> None:
        if distinct and context is None:
            raise ValueError("distinct contexts need to know how long a context is")
        self.by, self.distinct, self.window, self.context = by, distinct, window, context
        self.score = np.zeros((n_latents, k))
        self.row = np.full((n_latents, k), -1, np.int64)
        self.value = np.zeros((n_latents, k), np.float32)
        self.key = np.zeros((n_latents, k), np.uint64)
        self.slot = np.tile(np.arange(k, dtype=np.int32), (n_latents, 1))
        self.heat = np.zeros((n_latents, k, sum(window) + 1), np.float32) if window else None

    def add(self, codes: SparseCodes, rows: ShardRows, only: NDArray[np.bool_] | None = None) -> None:
        """Offer the entries of a shard, or of those of its rows where `only` [R] holds."""
        starts, local, _ = codes.by_latent
        value = codes.latent_values
        if only is not None:
            inside = only[local]
            running = np.concatenate([[0], np.cumsum(inside)])
            starts, local, value = running[starts], local[inside], value[inside]
        row = rows.row[local]
        key = np.zeros(len(row), np.uint64) if self.context is None else rows.context(self.context)[local]
        if self.by == "value":
            score = value.astype(np.float64)
        else:
            score = ((mix(row.astype(np.uint64) ^ SAMPLE_SEED) >> np.uint64(11)) + np.uint64(1)).astype(np.float64)
        self._offer(starts, score, row, value, key)
        if self.heat is not None and self.window is not None:
            heat, (before, after) = self.heat, self.window

            def cut(first: int, stop: int) -> None:
                windows(
                    self.score, self.row, self.slot, rows.start, rows.ctx, codes.indptr, codes.latents, codes.values,
                    before, after, heat, first, stop,
                )  # fmt: skip

            over_latents(cut, np.ones(len(self.score)))

    def _offer(
        self,
        starts: NDArray[np.int64],
        score: NDArray[np.float64],
        row: NDArray[np.int64],
        value: NDArray[np.float32],
        key: NDArray[np.uint64],
    ) -> None:
        def run(first: int, stop: int) -> None:
            offer(
                starts, score, row, value, key, self.distinct,
                self.score, self.row, self.value, self.key, self.slot, first, stop,
            )  # fmt: skip

        over_latents(run, np.diff(starts) + 1)

    def merge(self, other: Keeper) -> None:
        """Take in what another keeper kept of other rows."""
        filled = other.score > 0
        starts = np.zeros(len(filled) + 1, np.int64)
        np.cumsum(filled.sum(axis=1), out=starts[1:])
        self._offer(starts, other.score[filled], other.row[filled], other.value[filled], other.key[filled])
        if self.heat is not None and other.heat is not None:
            # An entry is known by its row: whatever of the other's is now ours brings its window along.
            theirs = {
                (i, int(other.row[i, s])): int(other.slot[i, s]) for i, s in zip(*np.nonzero(filled), strict=True)
            }
            for i, s in zip(*np.nonzero(self.score > 0), strict=True):
                slot = theirs.get((i, int(self.row[i, s])))
                if slot is not None:
                    self.heat[i, self.slot[i, s]] = other.heat[i, slot]

    @property
    def kept(self) -> NDArray[np.int64]:
        """Entries kept per latent [F]."""
        kept: NDArray[np.int64] = (self.score > 0).sum(axis=1)
        return kept

    def kept_of(self, latent: int) -> int:
        """Entries kept of one latent."""
        return int((self.score[latent] > 0).sum())

    def heat_of(self, latent: int) -> NDArray[np.float32]:
        """The activations around each entry of a latent, best first: [K, before + 1 + after]."""
        if self.heat is None:
            raise ValueError("this keeper keeps no windows")
        windows: NDArray[np.float32] = self.heat[latent, self.slot[latent]]
        return windows
