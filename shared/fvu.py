"""Fraction of variance unexplained, accumulated over batches in float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
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
        # On the device of the rows: errors and deviations [2, d], and how many rows. They are read when a figure is.
        self._sums = torch.zeros(2, len(mean), dtype=torch.float64)
        self._rows = torch.zeros((), dtype=torch.int64)

    def update(self, y: Tensor, y_hat: Tensor, counted: Tensor | None = None) -> None:
        """Add rows [B, d] in raw activation space. The host does not wait for the device.

        Args:
            counted: [B] bool, the rows that count; None: all.
        """
        if self._sums.device != y.device:
            self._move(y.device)
        y = y.to(torch.float64)
        both = torch.stack([y - y_hat.to(torch.float64), y - self.mean])
        if self.scale is not None:
            both *= self.scale
        both.square_()
        if counted is None:
            self._rows += len(y)
        else:
            both = torch.where(counted.unsqueeze(1), both, 0.0)
            self._rows += counted.sum()
        # Over rows alone: torch splits that among its threads by dimension, so its bits do not depend on their number.
        self._sums += both.sum(dim=1)

    def _move(self, device: torch.device) -> None:
        self.mean, self._sums, self._rows = (x.to(device) for x in (self.mean, self._sums, self._rows))
        self.scale = None if self.scale is None else self.scale.to(device)

    @property
    def rows(self) -> int:
        """Rows counted so far."""
        return int(self._rows)

    def _by_dimension(self) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = self._sums.cpu().numpy()
        return sums

    @property
    def value(self) -> float | None:
        """The ratio; None without rows or variance."""
        error, variance = self._by_dimension().sum(axis=1).tolist()
        return error / variance if variance > 0 else None

    def part(self, start: int, stop: int) -> tuple[float | None, float | None]:
        """(value, mean over dimensions) of the dimensions [start, stop) alone: of one part of a joint site."""
        error, variance = self._by_dimension()[:, start:stop]
        varies = variance > 0
        if not varies.any():
            return None, None
        return float(error.sum() / variance.sum()), float((error[varies] / variance[varies]).mean())

    @property
    def mean_over_dimensions(self) -> float | None:
        """Mean over dimensions d of Σ(y_d − ŷ_d)² / Σ(y_d − ȳ_d)²: every dimension counts alike, however large it is.

        None without rows; dimensions that do not vary are excluded.
        """
        return self.part(0, self._sums.shape[1])[1]
