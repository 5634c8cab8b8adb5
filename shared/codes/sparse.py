"""The active codes of a batch of rows, in row-major and in latent-major order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ..coders import Codes
from . import order
from .moments import CodeMoments


class ByLatent(NamedTuple):
    """Latent-major order: the entries of latent i are starts[i] … starts[i+1], rows ascending.

    `entry` is the place of each entry in row-major order.
    """

    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    entry: NDArray[np.int64]


@dataclass(frozen=True)
class SparseCodes:
    """Active codes of R rows: row r holds entries indptr[r] … indptr[r+1], latents ascending, values > 0.

    Attributes:
        indptr: [R + 1] int64.
        latents: [E] int32.
        values: [E] float32.
    """

    indptr: NDArray[np.int64]
    latents: NDArray[np.int32]
    values: NDArray[np.float32]
    n_latents: int

    @classmethod
    def from_parts(cls, parts: Sequence[Codes], n_latents: int, inside: NDArray[np.bool_] | None = None) -> SparseCodes:
        """Join the codes of consecutive rows.

        Args:
            inside: [R] which of R rows were encoded; the others are empty. None: all were.
        """
        rows, latents, values, start = [], [], [], 0
        for part in parts:
            active = part.entries()
            rows.append(active.row.cpu().numpy() + start)
            latents.append(active.latent.cpu().numpy())
            values.append(active.value.float().cpu().numpy())
            start += part.n_rows
        row, latent, value = np.concatenate(rows), np.concatenate(latents).astype(np.int32), np.concatenate(values)
        if inside is not None:
            row, start = np.flatnonzero(inside)[row], len(inside)
        indptr = np.zeros(start + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=start), out=indptr[1:])
        return cls.sorted(indptr, latent, value, n_latents)

    @classmethod
    def sorted(
        cls, indptr: NDArray[np.int64], latents: NDArray[np.int32], values: NDArray[np.float32], n_latents: int
    ) -> SparseCodes:
        """From entries whose latents may come in any order within a row."""
        starts, rows, unsorted = order.by_latent(indptr, latents, values, n_latents)
        latents, values, entry = order.by_row(indptr, starts, rows, unsorted)
        codes = cls(indptr, latents, values, n_latents)
        codes.__dict__["by_latent"] = ByLatent(starts, rows, entry)
        codes.__dict__["latent_values"] = unsorted
        return codes

    @classmethod
    def from_dense(cls, dense: NDArray[np.float32]) -> SparseCodes:
        """[R, F] with 0 = inactive."""
        csr = sp.csr_matrix(dense)
        return cls(csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data, dense.shape[1])

    @classmethod
    def stack(cls, parts: Sequence[SparseCodes]) -> SparseCodes:
        """Rows of several batches, one after the other."""
        if len(parts) == 1:
            return parts[0]
        offsets = np.cumsum([0] + [len(part.latents) for part in parts])
        indptr = [part.indptr[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
        return cls(
            np.concatenate([*indptr, offsets[-1:]]),
            np.concatenate([part.latents for part in parts]),
            np.concatenate([part.values for part in parts]),
            parts[0].n_latents,
        )

    @property
    def n_rows(self) -> int:
        return len(self.indptr) - 1

    @cached_property
    def by_latent(self) -> ByLatent:
        return ByLatent(*order.by_latent(self.indptr, self.latents, np.arange(len(self.latents)), self.n_latents))

    @cached_property
    def latent_values(self) -> NDArray[np.float32]:
        """The values in latent-major order [E]."""
        return self.values[self.by_latent.entry]

    @cached_property
    def fired(self) -> NDArray[np.int64]:
        """Rows on which each latent fires [F]."""
        return np.diff(self.by_latent.starts)

    @cached_property
    def l0(self) -> NDArray[np.int64]:
        """Latents that fire on each row [R]."""
        return np.diff(self.indptr)

    @cached_property
    def moments(self) -> CodeMoments:
        """Of all rows."""
        return CodeMoments.of(self.latents, self.values, self.n_rows, self.n_latents)

    def rows(self, mask: NDArray[np.bool_]) -> SparseCodes:
        """The rows where mask [R] holds, in order."""
        lengths = self.l0
        inside = np.repeat(mask, lengths)
        indptr = np.zeros(int(mask.sum()) + 1, np.int64)
        np.cumsum(lengths[mask], out=indptr[1:])
        return SparseCodes(indptr, self.latents[inside], self.values[inside], self.n_latents)

    def where(self, mask: NDArray[np.bool_]) -> SparseCodes:
        """All rows, those where mask [R] does not hold without a code."""
        inside = np.repeat(mask, self.l0)
        indptr = np.zeros(self.n_rows + 1, np.int64)
        np.cumsum(np.where(mask, self.l0, 0), out=indptr[1:])
        return SparseCodes(indptr, self.latents[inside], self.values[inside], self.n_latents)

    def columns(self, new_id: NDArray[np.int32], n_latents: int) -> SparseCodes:
        """Keep the latents with new_id [F] ≥ 0 (ascending in the old id), renumbered."""
        renamed = new_id[self.latents]
        inside = renamed >= 0
        indptr = np.zeros(self.n_rows + 1, np.int64)
        np.cumsum(inside, out=(running := np.empty(len(inside), np.int64)))
        indptr[1:] = np.concatenate([[0], running])[self.indptr[1:]]
        return SparseCodes(indptr, renamed[inside], self.values[inside], n_latents)

    def csr(self) -> sp.csr_matrix[np.float32]:
        """The same as a SciPy matrix [R, F] (shares memory)."""
        return sp.csr_matrix((self.values, self.latents, self.indptr), shape=(self.n_rows, self.n_latents))
