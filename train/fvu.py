"""Fraction of variance unexplained, accumulated over batches in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class FVU:
    """Fraction of variance unexplained, Σ‖y − ŷ‖² / Σ‖y − ȳ‖², accumulated over batches, and its mean over dimensions.

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
        self.error_of = np.zeros(len(mean))
        self.variance_of = np.zeros(len(mean))

    def update(self, y: Tensor, y_hat: Tensor) -> None:
        """Add rows [B, d] in raw activation space."""
        y = y.to(torch.float64)
        error, deviation = (y - y_hat.to(torch.float64)).square(), (y - self.mean.to(y.device)).square()
        self.error += _sum(error)
        self.variance += _sum(deviation)
        self.error_of += error.cpu().numpy().sum(axis=0)
        self.variance_of += deviation.cpu().numpy().sum(axis=0)
        self.rows += y.shape[0]

    @property
    def value(self) -> float | None:
        """The ratio; None without rows or variance."""
        return self.error / self.variance if self.variance > 0 else None

    @property
    def mean_over_dimensions(self) -> float | None:
        """Mean over dimensions d of Σ(y_d − ŷ_d)² / Σ(y_d − ȳ_d)²: every dimension counts alike, however large it is.

        None without rows; dimensions that do not vary are excluded.
        """
        varies = self.variance_of > 0
        return float((self.error_of[varies] / self.variance_of[varies]).mean()) if varies.any() else None


def _sum(squares: Tensor) -> float:
    """Each row's sum in torch, then over the rows in NumPy, which uses one thread: torch splits a sum over a whole
    matrix among its threads, so its last bit would depend on their number."""
    return float(squares.sum(dim=1).cpu().numpy().sum())
