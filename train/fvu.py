"""Measures that mean the same in training and in analysis. All sums are float64."""

from __future__ import annotations

import torch
from torch import Tensor


class FVU:
    """Fraction of variance unexplained, Σ‖y − ŷ‖² / Σ‖y − ȳ‖², accumulated over batches.

    ȳ is fixed beforehand, per dimension, from the training cache: of the rows without position 0 for the figure
    without, of all rows for the figure with.

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
    """Each row's, then over the rows by NumPy, which has one thread: torch splits a sum over a whole matrix among its
    threads, and its last bit would hang on their number."""
    return float(rows.square().sum(dim=1).cpu().numpy().sum())


def fvu(y: Tensor, y_hat: Tensor, mean: Tensor | None = None) -> float | None:
    """FVU of one set of rows [N, d]; ȳ is their own mean unless given."""
    meter = FVU(y.to(torch.float64).mean(dim=0) if mean is None else mean)
    meter.update(y, y_hat)
    return meter.value


def max_cosines(a: Tensor, b: Tensor | None = None, chunk: int = 4096) -> Tensor:
    """Largest cosine of each row of a [m, d] with a row of b [n, d] (with another row of a when b is None): [m]."""
    a = torch.nn.functional.normalize(a.to(torch.float64), dim=1)
    other = a if b is None else torch.nn.functional.normalize(b.to(torch.float64), dim=1)
    best = []
    for start in range(0, a.shape[0], chunk):
        cosines = a[start : start + chunk] @ other.T
        if b is None:
            cosines.diagonal(start).fill_(-torch.inf)
        best.append(cosines.amax(dim=1))
    return torch.cat(best)


def mmcs(a: Tensor, b: Tensor) -> float:
    """Mean max cosine similarity: the mean over rows of a [m, d] of the largest cosine with a row of b [n, d]."""
    return float(max_cosines(a, b).mean())
