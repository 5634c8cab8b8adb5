"""First and second moments of each latent's codes, the half of Pearson's r that needs no pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-9
"""Share of N Σz² below which N Σz² − (Σz)² is no variance: float64 sums over some 10⁸ rows err by about 1e-12 of it,
and one deviation in 30,000 of the mean is more."""


@dataclass(frozen=True)
class CodeMoments:
    """n_i, Σz_i and Σz_i² of each latent over a number of rows, in float64. Rows on which a latent is silent count.

    Attributes:
        n: [F] rows on which the latent fires.
        sum, sum_sq: [F].
    """

    rows: int
    n: NDArray[np.int64]
    sum: NDArray[np.float64]
    sum_sq: NDArray[np.float64]

    @classmethod
    def zeros(cls, n_latents: int) -> CodeMoments:
        """Of no rows."""
        return cls(0, np.zeros(n_latents, np.int64), np.zeros(n_latents), np.zeros(n_latents))

    @classmethod
    def of(cls, latents: NDArray[np.integer], values: NDArray[np.floating], rows: int, n_latents: int) -> CodeMoments:
        """Of the active codes of `rows` rows: which latent [E], how strongly [E]."""
        exact = values.astype(np.float64)
        return cls(
            rows,
            np.bincount(latents, minlength=n_latents),
            np.bincount(latents, exact, n_latents).astype(np.float64, copy=False),  # int64 where there is no entry
            np.bincount(latents, exact * exact, n_latents).astype(np.float64, copy=False),
        )

    def __add__(self, other: CodeMoments) -> CodeMoments:
        return CodeMoments(self.rows + other.rows, self.n + other.n, self.sum + other.sum, self.sum_sq + other.sum_sq)

    def __sub__(self, part: CodeMoments) -> CodeMoments:
        """Of the rows that are not in `part`, which is part of these."""
        return CodeMoments(self.rows - part.rows, self.n - part.n, self.sum - part.sum, self.sum_sq - part.sum_sq)

    def take(self, latents: NDArray[np.integer]) -> CodeMoments:
        """Of these latents alone, in their order."""
        return CodeMoments(self.rows, self.n[latents], self.sum[latents], self.sum_sq[latents])

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """[F]; 0 without rows."""
        return self.sum / max(self.rows, 1)

    @cached_property
    def spread(self) -> NDArray[np.float64]:
        """√(N Σz² − (Σz)²) [F]: N times the standard deviation; 0 of a latent whose difference is rounding alone."""
        square = self.rows * self.sum_sq
        difference = square - self.sum**2
        found: NDArray[np.float64] = np.sqrt(np.where(difference > ROUNDING * square, difference, 0.0))
        return found

    @cached_property
    def ratio(self) -> NDArray[np.float64]:
        """Mean / standard deviation [F]; 0 where a latent does not vary."""
        found = np.zeros(len(self.sum))
        np.divide(self.sum, self.spread, out=found, where=self.spread > 0)
        return found

    @cached_property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of the population [F]; 0 where `spread` is."""
        return self.spread / max(self.rows, 1)

    def pearson(self, i: NDArray[Any], j: NDArray[Any], sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """r of pairs [P] from their Σ z_i z_j; NaN where a latent does not vary."""
        product = self.spread[i] * self.spread[j]
        covariance = self.rows * sums - self.sum[i] * self.sum[j]
        r = np.full(product.shape, np.nan)
        np.divide(covariance, product, out=r, where=product > 0)
        return r.clip(-1.0, 1.0)
