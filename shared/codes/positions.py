"""Bins of positions, and how much of the activation lies at position 0."""

from __future__ import annotations

from typing import TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..coders import Codes

Positions = TypeVar("Positions", NDArray, Tensor)  # type: ignore[type-arg]


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


def bos_share(codes: Codes, position: Tensor) -> float:
    """Share of the activation Σ z at position 0; 0 where nothing is active.

    Args:
        position: [B] of the rows of `codes`.
    """
    by_row = codes.values.sum(dim=1, dtype=torch.float64)
    total = float(by_row.sum())
    return float(by_row[position == 0].sum()) / total if total > 0 else 0.0
