"""Bins of positions, and how strongly position 0 activates."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from ..coders import Codes

Positions = TypeVar("Positions", "NDArray", "Tensor")  # type: ignore[type-arg]


def position_bins(position: Positions, ctx: int, bins: int) -> Positions:
    """Bin of each position: 0 for position 0, then 1 … bins, of equal width over the positions 1 … ctx − 1.

    Position p > 0 falls into bin 1 + ⌊(p − 1) · bins / (ctx − 1)⌋. The same in analysis and training, on the host and
    on a device. With bins > ctx − 1 some bins stay empty.

    Args:
        position: integers in 0 … ctx − 1, any shape; with p · bins below the limit of their type.

    Returns:
        Of the shape and type of `position`.
    """
    # At p = 0 the quotient is −bins / (ctx − 1), rounded down: at most −1, so the sum is at most 0.
    return (1 + (position - 1) * bins // max(ctx - 1, 1)).clip(0)


def bin_edges(ctx: int, bins: int) -> list[float]:
    """Where the bins of `position_bins` begin and end: [bins + 2] positions."""
    return [0.0, *(1 + (ctx - 1) * b / bins for b in range(bins + 1))]


def bos_enrichment(codes: Codes, position: Tensor) -> float | None:
    """Mean Σ z of a row at position 0 ÷ mean Σ z of the other rows: 1 if position 0 activates like any row.

    The share of activation at position 0 depends on how many such rows are drawn; this ratio does not.

    Args:
        position: [B] of the rows of `codes`.

    Returns:
        None if there are no rows of either kind, or the others do not activate.
    """
    import torch

    by_row = codes.values.sum(dim=1, dtype=torch.float64)
    at_zero = position == 0
    n, total, bos = int(at_zero.sum()), float(by_row.sum()), float(by_row[at_zero].sum())
    rest = len(by_row) - n
    if not n or not rest or not total > bos:
        return None
    return (bos / n) / ((total - bos) / rest)
