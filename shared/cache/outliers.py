"""Massive rows: the few rows outside position 0 whose norm dwarfs all others, and what a site is without them.

Some tokens after position 0 (a quote, a space, a slash at certain places) carry the same massive activations (Sun et
al. 2024, arXiv 2402.17762) as the first position: in the middle layers of Gemma-3-270M a thousandth of the rows holds a
third of the variance. Whatever is averaged over rows is then mostly about them, so they are a class of their own:
position 0, massive, and ordinary rows.

The rule: a row is massive when it is text outside position 0, its norm exceeds FACTOR times the median norm of such
rows at its site, and its largest |x| lies in an outlying dimension of the site (shared/cache/massive.py). So a site
without outlying dimensions has no massive rows: a row that is long in many dimensions says more, not something else.
The median is exact; finding it takes 8 bytes of memory for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .massive import outliers
from .stats import Moments, decode_vector, encode_vector

FACTOR = 3.0
"""Multiple of the median norm beyond which a row can be massive."""

ROWS_AT_ONCE = 4096

NORM_NUMBERS = 1 << 15
"""Numbers whose norms are taken at a time: in float32 they stay in a core's cache, and PyTorch does not start threads
for so few, which cost more than they bring here."""


@dataclass(frozen=True)
class SiteOutliers:
    """Massive rows and outlying dimensions of one site.

    Attributes:
        median_norm: of the text rows outside position 0.
        rows: [m] massive rows of the cache, ascending.
        ordinary: moments of the text rows that are neither at position 0 nor massive.
        massive: moments of the massive rows.
        dimensions: outlying dimensions over the rows outside position 0, the largest first.
        rest: moments of the rows outside position 0: `ordinary` and `massive` together.
    """

    median_norm: float
    rows: NDArray[np.int64]
    ordinary: Moments
    massive: Moments
    dimensions: tuple[int, ...]
    rest: Moments

    @property
    def threshold(self) -> float:
        """The norm beyond which a row can be massive."""
        return FACTOR * self.median_norm

    @property
    def share_of_variance(self) -> float:
        """Share of Σ‖x − x̄‖² over the rows outside position 0 that lies in massive rows."""
        total = float(self.rest.var.sum()) * self.rest.n
        mean = self.rest.mean
        own = self.massive.sum_norm_sq - 2 * float(self.massive.sum @ mean) + self.massive.n * float(mean @ mean)
        return own / total if total > 0 else 0.0

    @property
    def dimensions_share(self) -> float:
        """Share of the variance over the rows outside position 0 that lies in the outlying dimensions."""
        variance = self.rest.var
        total = float(variance.sum())
        return float(variance[list(self.dimensions)].sum()) / total if total > 0 else 0.0

    def mask(self, n_rows: int) -> NDArray[np.bool_]:
        """[n_rows]: which rows of the cache are massive."""
        found = np.zeros(n_rows, np.bool_)
        found[self.rows] = True
        return found

    def to_dict(self) -> dict[str, Any]:
        """For the manifest; what follows from the site's statistics is not repeated."""
        return {
            "factor": FACTOR,
            "median_norm": self.median_norm,
            "n_rows": len(self.rows),
            "share_of_variance": self.share_of_variance,
            "dimensions": list(self.dimensions),
            "dimensions_share_of_variance": self.dimensions_share,
            "rows": encode_vector(self.rows.astype(np.float64)),  # whole numbers below 2^53 are exact
            "moments": self.massive.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], rest: Moments) -> Self:
        """Raises DataError where a vector cannot be decoded.

        Args:
            rest: the site's moments over rows outside position 0.
        """
        massive = Moments.from_dict(value["moments"])
        return cls(
            float(value["median_norm"]),
            decode_vector(value["rows"]).astype(np.int64),
            subtract(rest, massive),
            massive,
            tuple(int(d) for d in value["dimensions"]),
            rest,
        )


Shard = tuple[int, NDArray[np.bool_], Tensor]
"""First row of a shard in the cache, which of its rows are text outside position 0 [R], its activations [R, d]."""


def find_outliers(
    rest: Moments, shards: Iterable[Shard], rows_of: Callable[[NDArray[np.int64]], Tensor]
) -> SiteOutliers:
    """Massive rows and outlying dimensions of a site, from one pass over its rows' norms.

    Args:
        rest: the site's moments over text rows outside position 0.
        shards: every shard once.
        rows_of: gathers rows of the cache by number, [n, d].
    """
    dimensions = tuple(one.dimension for one in outliers(rest))
    by_shard = list(_norms(shards))
    finite = [norms[np.isfinite(norms)] for _, norms in by_shard]
    norms = np.concatenate([np.zeros(0, np.float32), *finite])
    median = float(np.median(norms, overwrite_input=True)) if len(norms) else 0.0
    above = [first + np.flatnonzero(norms > FACTOR * median) for first, norms in by_shard]
    candidates = np.concatenate([np.zeros(0, np.int64), *above])
    kept, massive = [np.zeros(0, np.int64)], Moments.zeros(len(rest.sum))
    for start in range(0, len(candidates), ROWS_AT_ONCE):
        some = candidates[start : start + ROWS_AT_ONCE]
        x = rows_of(some).double().numpy()
        confirmed = np.isin(np.abs(x).argmax(axis=1), dimensions)
        kept.append(some[confirmed])
        massive = massive + _moments(x[confirmed])
    return SiteOutliers(median, np.concatenate(kept), subtract(rest, massive), massive, dimensions, rest)


def subtract(whole: Moments, part: Moments) -> Moments:
    """Moments of the rows of `whole` that are not in `part`."""
    return Moments(
        whole.n - part.n,
        whole.sum - part.sum,
        np.maximum(whole.sum_sq - part.sum_sq, 0.0),
        whole.sum_norm - part.sum_norm,
        max(whole.sum_norm_sq - part.sum_norm_sq, 0.0),
    )


def _norms(shards: Iterable[Shard]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Of each shard: its first row in the cache, and its rows' norms, NaN where a row does not count or is not finite.

    Each row is summed by itself, so neither the number of threads nor the size of a shard changes a bit.
    """
    for first, counted, x in shards:
        pieces = torch.split(x, max(1, NORM_NUMBERS // x.shape[1]))
        norm = np.concatenate([piece.float().norm(dim=1).numpy() for piece in pieces])
        norm[~(counted & np.isfinite(norm))] = np.nan
        yield first, norm


def _moments(x: NDArray[np.float64]) -> Moments:
    squares = x * x
    norm_sq = squares.sum(axis=1)
    return Moments(len(x), x.sum(axis=0), squares.sum(axis=0), float(np.sqrt(norm_sq).sum()), float(norm_sq.sum()))
