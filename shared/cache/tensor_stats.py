"""Statistics of a shard summed where its rows are made, on any device, while they are there (shared.cache.stats).

Every sum is float64, over pieces of rows in order, without atomics: equal pieces give bit-identical sums on one device.
They differ from :func:`shared.cache.stats.site_stats` by rounding alone: that one squares a row in float32, so norms
agree to about 1e-7, and sums over rows, added in another order, to about 1e-12.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device import to_device
from .format import positions
from .rows import text_rows
from .stats import SiteStats, sums_to_stats

PIECE_NUMBERS = 1 << 24
"""Numbers converted to float64 at a time."""


class Classes:
    """Which rows of some whole sequences count, and which of those are at position 0, on the host and on a device.

    Args:
        flags: [rows], whole sequences in order.
    """

    def __init__(self, flags: NDArray[np.uint8], ctx: int, device: torch.device) -> None:
        self.ctx, self.device = ctx, device
        self.text = text_rows(flags)
        self.at_first = np.asarray(positions(np.arange(len(flags)), flags, ctx) == 0)
        both = torch.from_numpy(np.stack([self.text, self.at_first]))
        self.on_device = to_device(both, device)


class TensorSums:
    """Sums over the rows of one shard of one site, added piece by piece.

    Args:
        classes: of a unit of sequences.
        rows: those of the unit that are this shard's.
        width: numbers in a row.
    """

    def __init__(self, classes: Classes, rows: slice, width: int) -> None:
        self._classes, self._rows, self._width = classes, rows, width
        n, device = rows.stop - rows.start, classes.device
        self._sums = torch.zeros(4, width, dtype=torch.float64, device=device)
        self._norm_sq = torch.zeros(n, dtype=torch.float64, device=device)
        self._finite = torch.zeros(n, dtype=torch.bool, device=device)
        self._host: Tensor | None = None

    def add(self, start: int, x: Tensor) -> None:
        """Adds rows as they are stored.

        Args:
            start: number of the first in the unit.
            x: [n, width] bfloat16 or float32; all of them in this shard.
        """
        step = max(1, PIECE_NUMBERS // self._width)
        for offset in range(0, len(x), step):
            self._add(start + offset, x[offset : offset + step])

    def _add(self, start: int, x: Tensor) -> None:
        own = slice(start - self._rows.start, start - self._rows.start + len(x))
        text, at_first = self._classes.on_device[:, start : start + len(x)].unsqueeze(-1)
        finite = x.isfinite().all(1)
        values = torch.where(finite[:, None] & text, x.double(), 0.0)
        squares = values * values
        sums = [torch.where(at_first == wanted, of, 0.0).sum(0) for wanted in (True, False) for of in (values, squares)]
        self._sums += torch.stack(sums)
        self._norm_sq[own] = squares.sum(1)
        self._finite[own] = finite

    def send(self) -> None:
        """Begins the copy to the host, on the current stream; :meth:`stats` may follow once that stream has done it."""
        packed = torch.cat([self._sums.flatten(), self._norm_sq, self._finite.double()])
        self._host = packed.to("cpu", non_blocking=True)

    def stats(self) -> SiteStats:
        """The statistics, after :meth:`send` and its copy."""
        assert self._host is not None
        found = self._host.numpy()
        n = self._rows.stop - self._rows.start
        sums, norm_sq, finite = np.split(found, [4 * self._width, 4 * self._width + n])
        first, first_sq, rest, rest_sq = sums.reshape(4, self._width).copy()
        text, at_first = self._classes.text[self._rows], self._classes.at_first[self._rows]
        return sums_to_stats(
            first=(first, first_sq),
            rest=(rest, rest_sq),
            norm_sq=norm_sq.copy(),
            finite=finite != 0,
            text=text,
            at_first=at_first,
            ctx=self._classes.ctx,
        )
