"""Statistics of a site, kept while it is written: first and second moments, norms, non-finite rows.

Rows fall into two classes, because position 0 is an outlier in every language model: ``first`` (position 0: the first
row of a sequence and every row flagged BOS, :func:`shared.cache.format.positions`) and ``rest`` (every other row).
Padding is in neither class. A row with an infinity or a NaN counts as non-finite and enters no sum. All sums over rows
are float64, of squares that are exact where x is bfloat16. Each shard is summed in one fixed order on one thread, and
shards are merged in shard order, so the same activations give bit-identical statistics whichever process wrote a shard.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .format import positions
from .rows import text_rows

Vector = NDArray[np.float64]

PIECE_NUMBERS = 1 << 17
"""Numbers converted to float32 at a time: two such buffers stay in a core's second-level cache."""


@dataclass(frozen=True)
class Moments:
    """Sums over n rows: Σx [d], Σx² [d], Σ‖x‖, Σ‖x‖²."""

    n: int
    sum: Vector
    sum_sq: Vector
    sum_norm: float
    sum_norm_sq: float

    @classmethod
    def zeros(cls, width: int) -> Self:
        return cls(0, np.zeros(width), np.zeros(width), 0.0, 0.0)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.n + other.n,
            self.sum + other.sum,
            self.sum_sq + other.sum_sq,
            self.sum_norm + other.sum_norm,
            self.sum_norm_sq + other.sum_norm_sq,
        )

    @property
    def mean(self) -> Vector:
        """Mean of x per dimension [d] (zeros when there is no row)."""
        return self.sum / max(self.n, 1)

    @property
    def var(self) -> Vector:
        """Population variance per dimension [d]."""
        return np.maximum(self.sum_sq / max(self.n, 1) - self.mean**2, 0.0)

    @property
    def mean_norm(self) -> float:
        """E‖x‖."""
        return self.sum_norm / max(self.n, 1)

    @property
    def mean_sq_norm(self) -> float:
        """E‖x‖²."""
        return self.sum_norm_sq / max(self.n, 1)

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "sum": encode_vector(self.sum),
            "sum_sq": encode_vector(self.sum_sq),
            "sum_norm": self.sum_norm,
            "sum_norm_sq": self.sum_norm_sq,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            int(value["n"]),
            decode_vector(value["sum"]),
            decode_vector(value["sum_sq"]),
            float(value["sum_norm"]),
            float(value["sum_norm_sq"]),
        )


@dataclass(frozen=True)
class SiteStats:
    """Statistics of one site, over one shard or over a whole cache.

    Attributes:
        first: rows at position 0, including those flagged BOS within a sequence.
        rest: every other row.
        position_n: rows counted at each place in the sequence [ctx], whatever their class.
        position_sum_norm: Σ‖x‖ at each place in the sequence [ctx].
        nonfinite: rows with an infinity or NaN; they enter no sum.
    """

    first: Moments
    rest: Moments
    position_n: NDArray[np.int64]
    position_sum_norm: Vector
    nonfinite: int

    @classmethod
    def zeros(cls, width: int, ctx: int) -> Self:
        return cls(Moments.zeros(width), Moments.zeros(width), np.zeros(ctx, np.int64), np.zeros(ctx), 0)

    @cached_property
    def all(self) -> Moments:
        """Both classes together."""
        return self.first + self.rest

    def __add__(self, other: SiteStats) -> SiteStats:
        return SiteStats(
            self.first + other.first,
            self.rest + other.rest,
            self.position_n + other.position_n,
            self.position_sum_norm + other.position_sum_norm,
            self.nonfinite + other.nonfinite,
        )

    def fits(self, width: int, ctx: int) -> bool:
        """Whether its vectors have these lengths."""
        per_dimension = (self.first.sum, self.first.sum_sq, self.rest.sum, self.rest.sum_sq)
        per_place = (self.position_n, self.position_sum_norm)
        return {v.shape for v in per_dimension} == {(width,)} and {v.shape for v in per_place} == {(ctx,)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": self.first.to_dict(),
            "rest": self.rest.to_dict(),
            "position_n": self.position_n.tolist(),
            "position_sum_norm": encode_vector(self.position_sum_norm),
            "nonfinite": self.nonfinite,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            Moments.from_dict(value["first"]),
            Moments.from_dict(value["rest"]),
            np.array(value["position_n"], np.int64),
            decode_vector(value["position_sum_norm"]),
            int(value["nonfinite"]),
        )


def merge_stats(parts: Iterable[SiteStats], width: int, ctx: int) -> SiteStats:
    """Adds up the statistics of shards; the order of ``parts`` is the order of the additions."""
    total = SiteStats.zeros(width, ctx)
    for part in parts:
        total = total + part
    return total


def site_stats(stored: NDArray[Any], ctx: int, flags: NDArray[np.uint8]) -> SiteStats:
    """Statistics of one shard of one site.

    Args:
        stored: [rows, d] bfloat16 bits as uint16, or float32; rows are whole sequences in order.
        ctx: tokens in a sequence.
        flags: [rows] :class:`shared.cache.format.Flag` bits: padding is not counted, BOS rows are ``first``.

    NumPy on one thread: its reductions take a fixed order and release the GIL, so writer threads run side by side.
    """
    rows, width = stored.shape
    sum_first, sum_rest = np.zeros(width), np.zeros(width)
    sq_first, sq_rest = np.zeros(width), np.zeros(width)
    norm_sq = np.empty(rows, np.float64)
    text = text_rows(flags)
    kept = text.copy()  # loses the rows that are not finite
    at_first = positions(np.arange(rows), flags, ctx) == 0
    step = max(1, PIECE_NUMBERS // width)
    values = np.empty((min(step, rows), width), np.float32)
    squares = np.empty_like(values)
    # After each piece the four sums and norm_sq cover every row so far. In `x` and `sq` a row that is not counted is 0,
    # and once the first class is added up its rows are 0 too, so that plain column sums give the rest.
    for start in range(0, rows, step):
        piece = slice(start, min(start + step, rows))
        n, first = piece.stop - start, at_first[piece]
        to_float32(stored[piece], out=values[:n])
        x, sq = _squared(values[:n], squares[:n], norm_sq[piece], kept[piece])
        drop = np.logical_not(kept[piece])
        x[drop] = 0
        sq[drop] = 0
        sum_first += x[first].sum(axis=0, dtype=np.float64)
        sq_first += sq[first].sum(axis=0, dtype=np.float64)
        x[first] = 0
        sq[first] = 0
        # float64: a float32 sum over rows rounds at every row, and on bfloat16's coarse grid always to the same side
        sum_rest += x.sum(axis=0, dtype=np.float64)
        sq_rest += sq.sum(axis=0, dtype=np.float64)
    return sums_to_stats(
        first=(sum_first, sq_first),
        rest=(sum_rest, sq_rest),
        norm_sq=norm_sq,
        finite=kept | ~text,
        text=text,
        at_first=at_first,
        ctx=ctx,
    )


def sums_to_stats(
    *,
    first: tuple[Vector, Vector],
    rest: tuple[Vector, Vector],
    norm_sq: Vector,
    finite: NDArray[np.bool_],
    text: NDArray[np.bool_],
    at_first: NDArray[np.bool_],
    ctx: int,
) -> SiteStats:
    """The statistics of one shard from sums over its rows.

    Args:
        first, rest: Σx and Σx² [d] of the counted rows of each class.
        norm_sq: ‖x‖² [rows]; those of rows that do not count are set to 0 here.
        finite, text, at_first: [rows]; a row counts if it is text and finite.
        ctx: tokens in a sequence.
    """
    kept = text & finite
    norm_sq[~kept] = 0
    norm = np.sqrt(norm_sq)
    first_norm, first_norm_sq = (_by_place(np.where(at_first, v, 0.0), ctx) for v in (norm, norm_sq))
    rest_norm, rest_norm_sq = (_by_place(np.where(at_first, 0.0, v), ctx) for v in (norm, norm_sq))
    n_first, position_n = int((kept & at_first).sum()), _by_place(kept.astype(np.int64), ctx)
    n_rest = int(position_n.sum()) - n_first
    return SiteStats(
        Moments(n_first, *first, float(first_norm.sum()), float(first_norm_sq.sum())),
        # place 0 of every sequence belongs to the first class
        Moments(n_rest, *rest, float(rest_norm[1:].sum()), float(rest_norm_sq[1:].sum())),
        position_n,
        _by_place(norm, ctx),
        int((text & ~kept).sum()),
    )


def _squared(
    x: NDArray[np.float32], sq: NDArray[np.float32], norm_sq: Vector, kept: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(x, x²) of one piece of rows. Fills norm_sq [n] with ‖x‖², and clears kept [n] where a row is not finite.

    Squares are float32, which holds the square of a bfloat16 exactly. A square may overflow although its row is
    finite: then the values decide, and the piece is computed again in float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(x, x, out=sq)
        norm_sq[:] = sq.sum(axis=1)
    if np.isfinite(norm_sq).all():
        return x, sq
    finite = np.asarray(np.isfinite(x).all(axis=1))
    kept &= finite
    exact = np.where(finite[:, None], x, 0).astype(np.float64)
    exact_sq = exact * exact
    norm_sq[:] = exact_sq.sum(axis=1)
    return exact, exact_sq


def _by_place(values: NDArray[Any], ctx: int) -> NDArray[Any]:
    """Sums of values [rows] at each place in the sequence [ctx]."""
    total: NDArray[Any] = values.reshape(-1, ctx).sum(axis=0)
    return total


def to_float32(stored: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Copies rows as float32; uint16 is read as bfloat16 (the upper half of a float32)."""
    if stored.dtype == np.uint16:
        np.left_shift(stored, 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
    else:
        np.copyto(out, stored)


def encode_vector(vector: Vector) -> str:
    """Little-endian float64 in base64: exact, and read ten times faster than decimal text."""
    return base64.b64encode(np.ascontiguousarray(vector, "<f8").tobytes()).decode("ascii")


def decode_vector(text: str) -> Vector:
    """The inverse of :func:`encode_vector`.

    Raises:
        DataError: the text is not base64 of whole float64 numbers.
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f8").astype(np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"a statistics vector of the cache cannot be decoded: {error}") from None
