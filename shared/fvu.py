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
        scale: [d] what y − ŷ and y − ȳ are multiplied by: of a joint site, so that its parts count alike; None: 1.
    """

    def __init__(self, mean: Tensor, scale: Tensor | None = None) -> None:
        self.mean, self.scale = mean.to(torch.float64), scale
        self.error = 0.0
        self.variance = 0.0
        self.rows = 0
        self.error_of = np.zeros(len(mean))
        self.variance_of = np.zeros(len(mean))

    def update(self, y: Tensor, y_hat: Tensor) -> None:
        """Add rows [B, d] in raw activation space."""
        y = y.to(torch.float64)
        error, deviation = y - y_hat.to(torch.float64), y - self.mean.to(y.device)
        if self.scale is not None:
            error, deviation = error * self.scale.to(y.device), deviation * self.scale.to(y.device)
        error, deviation = error.square(), deviation.square()
        self.error += _sum(error)
        self.variance += _sum(deviation)
        self.error_of += error.cpu().numpy().sum(axis=0)
        self.variance_of += deviation.cpu().numpy().sum(axis=0)
        self.rows += y.shape[0]

    @property
    def value(self) -> float | None:
        """The ratio; None without rows or variance."""
        return self.error / self.variance if self.variance > 0 else None

    def part(self, start: int, stop: int) -> tuple[float | None, float | None]:
        """(value, mean over dimensions) of the dimensions [start, stop) alone: of one part of a joint site."""
        error, variance = self.error_of[start:stop], self.variance_of[start:stop]
        varies = variance > 0
        if not varies.any():
            return None, None
        return float(error.sum() / variance.sum()), float((error[varies] / variance[varies]).mean())

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
