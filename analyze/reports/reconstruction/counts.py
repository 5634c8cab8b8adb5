"""Sums of errors, variances, firings and active latents over the rows of a cache, and the figures that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....shared.codes.sparse import SparseCodes
from ...stream.batches import ShardRows

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass
class ByDimension:
    """Sums over a class of rows for each dimension of the target, from which FVU and its mean over dimensions follow.

    Attributes:
        rows: number of rows.
        error: [d] Σ(y − ŷ)².
        variance: [d] Σ(y − ȳ)², ȳ the mean of the class in the training cache.
    """

    rows: int
    error: Doubles
    variance: Doubles

    @classmethod
    def empty(cls, width: int) -> ByDimension:
        """No rows yet."""
        return cls(0, np.zeros(width), np.zeros(width))

    def add(self, errors: Tensor, deviations: Tensor, rows: NDArray[np.bool_]) -> None:
        """Adds the rows of a shard where `rows` [R] holds; squared errors and deviations [R, d], float64."""
        self.rows += int(rows.sum())
        self.error += _column_sums(errors, rows)
        self.variance += _column_sums(deviations, rows)

    def merge(self, other: ByDimension) -> None:
        """Adds the rows that another collector has seen."""
        self.rows += other.rows
        self.error += other.error
        self.variance += other.variance

    def part(self, start: int, stop: int) -> ByDimension:
        """The dimensions [start, stop) alone."""
        return ByDimension(self.rows, self.error[start:stop], self.variance[start:stop])

    @property
    def fvu(self) -> float | None:
        """Σ‖y − ŷ‖² / Σ‖y − ȳ‖²; None without variance."""
        return _ratio(self.error.sum(), self.variance.sum())

    @property
    def fvu_dims(self) -> float | None:
        """Mean of the FVU of each dimension that varies; None where none does."""
        varies = self.variance > 0
        return float((self.error[varies] / self.variance[varies]).mean()) if varies.any() else None


def _column_sums(x: Tensor, rows: NDArray[np.bool_]) -> Doubles:
    """Σ of each column over some rows. On a CPU in NumPy: torch splits such a sum among its threads, so that its last
    bit would depend on their number."""
    some = x[torch.from_numpy(rows).to(x.device)]
    sums: Doubles = some.numpy().sum(axis=0) if some.device.type == "cpu" else some.sum(dim=0).cpu().numpy()
    return sums


@dataclass
class Counts:
    """Sums over rows, excluding padding. T positions, F latents, G prefixes of the dictionary (1 unless nested).

    Attributes:
        rows: [T] rows at each position.
        error: [G, T] Σ‖y − ŷ‖² of each prefix, the whole dictionary last.
        variance_rest: [T] Σ‖y − ȳ‖², ȳ the mean of the rows excluding position 0.
        variance_all: [T] the same with the mean of all rows.
        fired: [2, F] rows on which a latent fires: at position 0, and at all others.
        l0: [2, L] rows by number of active latents 0 … L − 1: at position 0, and at all others. L grows as needed.
        rest: sums over the rows excluding position 0.
        ordinary: sums over those that are not massive at the target; stays empty where the cache has no massive rows.
        massive_fired: [F] massive rows (at the source or the target) on which a latent fires.
        massive_l0: [L'] massive rows by number of active latents.
    """

    rows: Ints
    error: Doubles
    variance_rest: Doubles
    variance_all: Doubles
    fired: Ints
    l0: Ints
    rest: ByDimension
    ordinary: ByDimension
    massive_fired: Ints
    massive_l0: Ints

    @classmethod
    def empty(cls, *, positions: int, latents: int, prefixes: int, width: int) -> Counts:
        """No rows yet."""
        return cls(
            rows=np.zeros(positions, np.int64),
            error=np.zeros((prefixes, positions)),
            variance_rest=np.zeros(positions),
            variance_all=np.zeros(positions),
            fired=np.zeros((2, latents), np.int64),
            l0=np.zeros((2, 1), np.int64),
            rest=ByDimension.empty(width),
            ordinary=ByDimension.empty(width),
            massive_fired=np.zeros(latents, np.int64),
            massive_l0=np.zeros(1, np.int64),
        )

    def add(
        self,
        rows: ShardRows,
        codes: SparseCodes,
        *,
        errors: Sequence[Doubles],
        about_rest: Doubles,
        about_all: Doubles,
    ) -> None:
        """Adds a shard of R rows.

        Args:
            rows: of the shard.
            codes: [R, F], none on rows that are not kept.
            errors: ‖y − ŷ‖² of each prefix, of the K rows that are kept [K].
            about_rest, about_all: ‖y − ȳ‖² about the two means [K].
        """
        position, ctx = rows.position[rows.keep], len(self.rows)
        self.rows += np.bincount(position, minlength=ctx)
        for sums, values in zip(
            (*self.error, self.variance_rest, self.variance_all), (*errors, about_rest, about_all), strict=True
        ):
            sums += np.bincount(position, values, ctx)
        at_first, n = np.repeat(rows.first, codes.l0), self.fired.shape[1]
        self.fired[0] += np.bincount(codes.latents[at_first], minlength=n)
        self.fired[1] += np.bincount(codes.latents[~at_first], minlength=n)
        self._widen(int(codes.l0.max(initial=0)) + 1)
        width = self.l0.shape[1]
        self.l0[0] += np.bincount(codes.l0[rows.first], minlength=width)
        self.l0[1] += np.bincount(codes.l0[rows.rest], minlength=width)

    def add_massive(self, codes: SparseCodes, massive: NDArray[np.bool_]) -> None:
        """Adds the massive rows of a shard: codes [R, F], and which rows are massive [R]."""
        inside = np.repeat(massive, codes.l0)
        self.massive_fired += np.bincount(codes.latents[inside], minlength=len(self.massive_fired))
        self.massive_l0 = _added(self.massive_l0, np.bincount(codes.l0[massive], minlength=1))

    def merge(self, other: Counts) -> None:
        """Adds the rows that another collector has seen."""
        self.rows += other.rows
        self.error += other.error
        self.variance_rest += other.variance_rest
        self.variance_all += other.variance_all
        self.fired += other.fired
        self._widen(other.l0.shape[1])
        self.l0[:, : other.l0.shape[1]] += other.l0
        self.rest.merge(other.rest)
        self.ordinary.merge(other.ordinary)
        self.massive_fired += other.massive_fired
        self.massive_l0 = _added(self.massive_l0, other.massive_l0)

    def _widen(self, width: int) -> None:
        if width > self.l0.shape[1]:
            self.l0 = np.pad(self.l0, ((0, 0), (0, width - self.l0.shape[1])))

    @property
    def n_rest(self) -> int:
        """Rows, excluding position 0."""
        return int(self.rows[1:].sum())

    @property
    def n_all(self) -> int:
        """Rows, including position 0."""
        return int(self.rows.sum())

    @property
    def n_massive(self) -> int:
        """Massive rows."""
        return int(self.massive_l0.sum())

    @property
    def fired_ordinary(self) -> Ints:
        """Rows on which each latent fires, excluding position 0 and massive rows [F]."""
        ordinary: Ints = self.fired_rest - self.massive_fired
        return ordinary

    @property
    def fired_rest(self) -> Ints:
        """Rows on which each latent fires, excluding position 0 [F]."""
        rest: Ints = self.fired[1]
        return rest

    @property
    def fired_all(self) -> Ints:
        """Rows on which each latent fires, including position 0 [F]."""
        total: Ints = self.fired.sum(axis=0)
        return total

    def fvu(self, prefix: int = -1) -> float | None:
        """FVU of a prefix of the dictionary, excluding position 0; None without variance."""
        return _ratio(self.error[prefix, 1:].sum(), self.variance_rest[1:].sum())

    def fvu_all(self) -> float | None:
        """FVU including position 0; None without variance."""
        return _ratio(self.error[-1].sum(), self.variance_all.sum())

    def fvu_by_position(self) -> Doubles:
        """FVU at each position about the mean of all rows [T]; NaN at a position without rows."""
        with np.errstate(invalid="ignore", divide="ignore"):
            by_position: Doubles = self.error[-1] / np.where(self.rows > 0, self.variance_all, np.nan)
        return by_position

    def mean_l0(self) -> float | None:
        """Mean number of active latents, excluding position 0; None without rows."""
        return _mean_l0(self.l0[1])

    def mean_l0_ordinary(self) -> float | None:
        """Mean number of active latents, excluding position 0 and massive rows; None without rows."""
        return _mean_l0(_added(self.l0[1], -self.massive_l0))

    def mean_l0_all(self) -> float | None:
        """Mean number of active latents, including position 0; None without rows."""
        return _mean_l0(self.l0.sum(axis=0))


def _added(a: Ints, b: Ints) -> Ints:
    """The sum of two distributions, the shorter one filled up with zeros."""
    total = np.zeros(max(len(a), len(b)), np.int64)
    total[: len(a)] += a
    total[: len(b)] += b
    return total


def _ratio(a: float, b: float) -> float | None:
    return float(a / b) if b > 0 else None


def _mean_l0(distribution: Ints) -> float | None:
    rows = distribution.sum()
    return float((distribution * np.arange(len(distribution))).sum() / rows) if rows else None
