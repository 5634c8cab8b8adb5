"""Fraction of variance unexplained, accumulated over batches in float64."""

from __future__ import annotations

import torch
from torch import Tensor


class FVU:
    """Fraction of variance unexplained, Σ‖y − ŷ‖² / Σ‖y − ȳ‖², accumulated over batches.

    ȳ is fixed beforehand, per dimension, from the training cache: the mean of the rows excluding position 0, or of all
    rows for the figure including it.

    Args:
        mean: ȳ [d].
    """

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean.to(torch.float64)
        self.error = 0.0
        self.variance = 0.0
        self.rows = 0

    def update(self, y: Tensor, y_hat: Tensor) -> None:
        """Add rows [B, d] in raw activation space."""
        y = y.to(torch.float64)
        self.error += _sum_of_squares(y - y_hat.to(torch.float64))
        self.variance += _sum_of_squares(y - self.mean.to(y.device))
        self.rows += y.shape[0]

    @property
    def value(self) -> float | None:
        """The ratio; None without rows or variance."""
        return self.error / self.variance if self.variance > 0 else None


def _sum_of_squares(rows: Tensor) -> float:
    """Each row's sum in torch, then over the rows in NumPy, which uses one thread: torch splits a sum over a whole
    matrix among its threads, so its last bit would depend on their number."""
    return float(rows.square().sum(dim=1).cpu().numpy().sum())
