"""The codes that runs are compared on: the same rows, drawn once, of every coder of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from ...shared.codes.sparse import SparseCodes
from ..stream.batches import StreamBatch
from ..subject.subject import Subject
from .similarity import EXACT_PCA, RANDOM_RANK

ROWS_PER_DIM = 10
"""Rows that canonical correlations are computed on, for each component that a coder may have …"""

MIN_ROWS = 10_240
"""… and at least this many."""


class SampledCodes:
    """Collects the codes of rows drawn uniformly (excluding position 0), the same rows for every coder of a cache."""

    def __init__(self, subject: Subject, rows: int) -> None:
        seen = np.flatnonzero(subject.rest_rows)
        rng = np.random.default_rng(subject.seed)
        self.wanted = np.sort(rng.choice(seen, min(rows, len(seen)), replace=False))
        self.parts: dict[int, SparseCodes] = {}

    def update(self, batch: StreamBatch) -> None:
        """Take in one shard."""
        # self.wanted is sorted, so the wanted rows of one shard are one slice of it.
        first = batch.rows.start
        low, high = np.searchsorted(self.wanted, [first, first + len(batch.rows)])
        if high > low:
            mask = np.zeros(len(batch.rows), np.bool_)
            mask[self.wanted[low:high] - first] = True
            self.parts[first] = batch.codes.rows(mask)

    def merge(self, other: SampledCodes) -> None:
        """Take in what was collected from other shards."""
        self.parts |= other.parts

    @cached_property
    def codes(self) -> sp.csr_matrix[np.float32]:
        """Activations [n, F] of the drawn rows, in the order of the cache; read when the pass is over."""
        return SparseCodes.stack([self.parts[key] for key in sorted(self.parts)]).csr()


def sample_rows(subjects: Sequence[Subject]) -> int:
    """How many rows to draw for these coders."""
    dims = (s.n_latents if s.n_latents <= EXACT_PCA else RANDOM_RANK for s in subjects)
    return max(MIN_ROWS, ROWS_PER_DIM * max(dims))
