"""What the position report counts: firings by position, observed and after random shifts.

The arrays hold some 4 kB a latent for 200 shifts and up to 16 kB for the profile. Wide dictionaries are counted in
blocks of latents once the pass is over, from the codes that it kept on disk (:class:`CountedLater`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.parallel import over_latents
from ....shared.codes.sparse import SparseCodes
from ...stream.batches import ShardRows, shard_rows
from ...stream.kept_codes import KeptCodes
from ...subject.subject import Subject
from .bins import Bins
from .config import PositionConfig
from .kernels import by_bin, shifted_bins
from .shifts import shift_slots

COUNTED_BYTES = 1 << 30
"""The arrays of all latents are kept below this in the pass; beyond it they are counted later."""

BLOCK_BYTES = 1 << 28
"""The arrays of one block of latents counted later."""


@dataclass(frozen=True)
class MassiveCounts:
    """What massive rows add to `Counts.rows`, `Counts.firings` and `Counts.shifted`, in the same shapes."""

    rows: NDArray[np.int64]
    firings: NDArray[np.int64]
    shifted: NDArray[np.int32]

    @classmethod
    def zeros(cls, n_latents: int, bins: Bins, config: PositionConfig) -> MassiveCounts:
        """Before the first shard."""
        return cls(
            rows=np.zeros(bins.n_profile, np.int64),
            firings=np.zeros((n_latents, bins.n_profile), np.int64),
            shifted=np.zeros((n_latents, config.shifts * (bins.n_coarse - 1)), np.int32),
        )

    def merge(self, other: MassiveCounts) -> None:
        """Add what was counted over other rows."""
        for mine, theirs in ((self.rows, other.rows), (self.firings, other.firings), (self.shifted, other.shifted)):
            mine += theirs


@dataclass(frozen=True)
class Counts:
    """Firings of n latents by position, observed and after circular shifts. The arrays are added to in place.

    Attributes:
        config, seed: of the shifts.
        rows: [n_profile] rows that count in each profile bin.
        firings, sums: [n, n_profile] rows on which each latent fires, and Σ z.
        shifted, shifted_all: [n, shifts · bins] firings in each coarse bin after each shift, excluding position 0 and
            including it.
        massive: the massive rows' part in `rows`, `firings` and `shifted`; None where there are none.
    """

    bins: Bins
    config: PositionConfig
    seed: int
    rows: NDArray[np.int64]
    firings: NDArray[np.int64]
    sums: NDArray[np.float64]
    shifted: NDArray[np.int32]
    shifted_all: NDArray[np.int32]
    massive: MassiveCounts | None

    @classmethod
    def zeros(cls, n_latents: int, subject: Subject, config: PositionConfig) -> Counts:
        """Before the first shard."""
        bins = Bins.of(subject.n_positions, config.bins)
        return cls(
            bins=bins,
            config=config,
            seed=subject.seed,
            rows=np.zeros(bins.n_profile, np.int64),
            firings=np.zeros((n_latents, bins.n_profile), np.int64),
            sums=np.zeros((n_latents, bins.n_profile)),
            shifted=np.zeros((n_latents, config.shifts * (bins.n_coarse - 1)), np.int32),
            shifted_all=np.zeros((n_latents, config.shifts * bins.n_coarse), np.int32),
            massive=MassiveCounts.zeros(n_latents, bins, config) if subject.has_massive else None,
        )

    def add(self, codes: SparseCodes, rows: ShardRows, massive: NDArray[np.bool_]) -> None:
        """Count the codes of a shard.

        Args:
            massive: [R] its massive rows.
        """
        starts, local, _ = codes.by_latent
        values = codes.latent_values
        bin_of = np.where(rows.keep, self.bins.profile_of[rows.position], -1).astype(np.int32)
        self.rows[:] += np.bincount(bin_of[rows.keep], minlength=self.bins.n_profile)

        def count(first: int, stop: int) -> None:
            by_bin(
                starts,
                local,
                values,
                bin_of=bin_of,
                counts=self.firings,
                sums=self.sums,
                first=first,
                stop=stop,
            )

        over_latents(count, codes.fired + 1)
        self._shift(codes, rows, skip=1, counts=self.shifted)
        self._shift(codes, rows, skip=0, counts=self.shifted_all)
        if self.massive is not None:
            self._add_massive(self.massive, codes.where(massive), rows, massive)

    def _add_massive(
        self, counts: MassiveCounts, codes: SparseCodes, rows: ShardRows, massive: NDArray[np.bool_]
    ) -> None:
        """Count the massive rows of a shard by themselves. Shifts add up over rows, so their shifted firings are the
        massive rows' part in those of all rows."""
        bin_of = self.bins.profile_of[rows.position].astype(np.int64)
        counts.rows[:] += np.bincount(bin_of[massive], minlength=self.bins.n_profile)
        at = codes.latents.astype(np.int64) * self.bins.n_profile + np.repeat(bin_of, codes.l0)
        counts.firings[:] += np.bincount(at, minlength=counts.firings.size).reshape(counts.firings.shape)
        self._shift(codes, rows, skip=1, counts=counts.shifted)

    def _shift(self, codes: SparseCodes, rows: ShardRows, *, skip: int, counts: NDArray[np.int32]) -> None:
        """Count the firings of `shifts` replicates, in each of which every sequence is rotated by its own random
        amount.

        The amounts depend on the seed, the shard and `skip` alone: they are drawn once for all coders of a cache, and
        the order of shards or the process that reads them changes nothing.
        """
        starts, local, _ = codes.by_latent
        bins, shifts = self.bins, self.config.shifts
        make = partial(
            shift_slots,
            rows,
            shifts=shifts,
            skip=skip,
            to_bin=bins.coarse_of_position,
            n_bins=bins.n_coarse - skip,
            rng=np.random.default_rng((self.seed, rows.shard, skip)),
        )
        slot = rows.once(("shifts", shifts, skip, bins.n_coarse, self.seed), make)

        def count(first: int, stop: int) -> None:
            shifted_bins(starts, local, slot=slot, counts=counts, first=first, stop=stop)

        over_latents(count, codes.fired)

    def merge(self, other: Counts) -> None:
        """Add what was counted over other rows."""
        for mine, theirs in (
            (self.rows, other.rows),
            (self.firings, other.firings),
            (self.sums, other.sums),
            (self.shifted, other.shifted),
            (self.shifted_all, other.shifted_all),
        ):
            mine += theirs
        if self.massive is not None and other.massive is not None:
            self.massive.merge(other.massive)

    def blocks(self) -> Iterator[Counts]:
        """All latents at once."""
        yield self


class CountedLater:
    """Stands where Counts does: keeps the codes in the pass, and counts them for a block of latents at a time.

    A shard's codes are read again for each block, and its shifts are drawn again: the same ones.
    """

    def __init__(self, subject: Subject, config: PositionConfig) -> None:
        self.subject, self.config = subject, config
        self.bins = Bins.of(subject.n_positions, config.bins)
        self.kept = KeptCodes(subject.n_latents, subject.scratch)

    def add(self, codes: SparseCodes, rows: ShardRows, massive: NDArray[np.bool_]) -> None:
        """Keep the codes of a shard; which of its rows are massive is known later too."""
        self.kept.add(rows, codes)

    def merge(self, other: CountedLater) -> None:
        """Take the other's shards over."""
        self.kept.merge(other.kept)

    def blocks(self) -> Iterator[Counts]:
        """The counts of ascending ranges of latents, which together are all."""
        subject, config = self.subject, self.config
        size = max(1, BLOCK_BYTES // latent_bytes(subject, config))
        for first in range(0, subject.n_latents, size):
            stop = min(first + size, subject.n_latents)
            counts = Counts.zeros(stop - first, subject, config)
            for shard, codes in self.kept.of(first, stop):
                rows = shard_rows(subject.cache, shard, subject.only)
                counts.add(codes, rows, subject.massive_of(rows))
            yield counts


def latent_bytes(subject: Subject, config: PositionConfig) -> int:
    """What Counts holds of one latent."""
    one = Counts.zeros(1, subject, config)
    massive = 0 if one.massive is None else one.massive.firings.nbytes + one.massive.shifted.nbytes
    return one.firings.nbytes + one.sums.nbytes + one.shifted.nbytes + one.shifted_all.nbytes + massive


def counted_later(subject: Subject, config: PositionConfig) -> bool:
    """Whether the arrays of all latents would be too large for the pass."""
    return latent_bytes(subject, config) * subject.n_latents > COUNTED_BYTES


def counts_for(subject: Subject, config: PositionConfig) -> Counts | CountedLater:
    """What counts the firings of a subject."""
    if counted_later(subject, config):
        return CountedLater(subject, config)
    return Counts.zeros(subject.n_latents, subject, config)
