"""Bins of positions, as penalties, samplers and monitors mean them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.coders import Codes


def position_bins(position: Tensor, ctx: int, bins: int) -> Tensor:
    """[B] int64 bin of each position: 0 for position 0, then 1 … bins of equal width over 1 … ctx − 1."""
    later = 1 + (position.long() - 1) * bins // max(ctx - 1, 1)
    return torch.where(position > 0, later.clamp(1, bins), 0)


def bin_edges(ctx: int, bins: int) -> list[float]:
    """Where the bins of `position_bins` begin and end: [bins + 2] positions."""
    return [0.0, *(1 + (ctx - 1) * b / bins for b in range(bins + 1))]


def bos_share(codes: Codes, position: Tensor) -> float:
    """Share of the activation Σ z that lies at position 0; 0 where nothing is active."""
    by_row = codes.values.sum(dim=1, dtype=torch.float64)
    total = float(by_row.sum())
    return float(by_row[position == 0].sum()) / total if total > 0 else 0.0
