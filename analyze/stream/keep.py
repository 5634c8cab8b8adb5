"""Per latent, the largest activations of a pass over a cache, or a uniform sample of them. Merges exactly."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...shared.codes.best import Best
from ...shared.codes.parallel import over_latents
from ...shared.codes.sparse import SparseCodes
from ...shared.hashing import mix
from .batches import ShardRows
from .kept_codes import KeptCodes
from .windows import windows

SAMPLE_SEED = np.uint64(0x5EED)


class Keeper(Best):
    """The K best entries of each latent.

    Args:
        k: K.
        by: "value" keeps the largest activations; "sample" a uniform sample without replacement (the K largest hashes
            of the row), which does not depend on the order of the rows.
        distinct: keep one entry per context.
        codes: where the windows are cut from when they are read, in place of being kept: for wide dictionaries. Whoever
            offers the codes of a shard keeps them there too.
        context: most tokens before its own in an entry's context (shared.codes.contexts), which `distinct` compares;
            None: contexts are not compared.
        window: (before, after): also keep the latent's activation on that many tokens around; None: values and rows
            only.

    Attributes:
        key: hash of each entry's context. The rest as in :class:`Best`.
        heat: [F, K, before + 1 + after] float32, or None; read through :meth:`heat_of`.
    """

    def __init__(
        self,
        n_latents: int,
        k: int,
        by: Literal["value", "sample"] = "value",
        distinct: bool = False,
        window: tuple[int, int] | None = None,
        context: int | None = None,
        codes: KeptCodes | None = None,
    ) -> None:
        if distinct and context is None:
            raise ValueError("distinct contexts need to know how long a context is")
        super().__init__(n_latents, k, distinct=distinct, payload=np.float32)
        self.by, self.window, self.context, self.codes = by, window, context, codes
        self.heat = np.zeros((n_latents, k, sum(window) + 1), np.float32) if window and codes is None else None

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
        self.offer(starts, score=score, row=row, payload=value, key=key)
        if self.heat is not None and self.window is not None:
            heat, (before, after) = self.heat, self.window

            def cut(first: int, stop: int) -> None:
                windows(
                    self.score, self.row, self.slot, rows.start, rows.ctx, codes.indptr, codes.latents, codes.values,
                    before, after, heat, 0, first, stop,
                )  # fmt: skip

            over_latents(cut, np.ones(len(self.score)))

    def merge(self, other: Keeper) -> None:
        """Take in what another keeper kept of other rows."""
        filled = other.score > 0
        starts = np.zeros(len(filled) + 1, np.int64)
        np.cumsum(filled.sum(axis=1), out=starts[1:])
        self.offer(
            starts,
            score=other.score[filled],
            row=other.row[filled],
            payload=other.payload[filled],
            key=other.key[filled],
        )
        if self.heat is not None and other.heat is not None:
            # A row identifies an entry: those of the other's that are now ours bring their windows along.
            theirs = {
                (i, int(other.row[i, s])): int(other.slot[i, s]) for i, s in zip(*np.nonzero(filled), strict=True)
            }
            for i, s in zip(*np.nonzero(self.score > 0), strict=True):
                slot = theirs.get((i, int(self.row[i, s])))
                if slot is not None:
                    self.heat[i, self.slot[i, s]] = other.heat[i, slot]

    @property
    def value(self) -> NDArray[np.float32]:
        """The activation of each kept entry [F, K]."""
        return self.payload

    def heat_of(self, latent: int) -> NDArray[np.float32]:
        """The activations around each entry of a latent, best first: [K, before + 1 + after]."""
        if self.codes is not None and self.window is not None:
            return self.codes.around(latent, self.row[latent], *self.window)
        if self.heat is None:
            raise ValueError("this keeper keeps no windows")
        windows: NDArray[np.float32] = self.heat[latent, self.slot[latent]]
        return windows
