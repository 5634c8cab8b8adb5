"""Cosines between decoder rows, for all pairs, without forming the F × F matrix.

The rows are those of the coder's normalised space, in which training sees them and its penalties act. Dimensions that
normalisation made alike count alike there; in raw space a few large dimensions would decide every cosine. Where a
direction meets something outside the coder (a probe, the unembedding, another coder's rows), raw space is used instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shared.memory import rows_within

NEIGHBOURS = 20
"""Nearest rows that are kept for each row."""

BINS = 200
"""Bins of the histogram of all cosines."""

CLOSE = 0.8
"""Pairs with at least this |cos| are listed."""

PAIR_CAPACITY = 1_000_000
"""At most this many pairs are listed; all are counted."""

BLOCK = 512
"""Rows whose cosines with all F rows are in memory at once, fewer of them where F is large."""


@dataclass(frozen=True)
class Geometry:
    """Cosines of the rows of a matrix [F, d].

    Attributes:
        rows: [F, d] float32 unit rows (a zero row stays zero).
        near, near_cos: [F, m] the nearest other rows, largest cosine first.
        lowest: [F] the most negative cosine with another row.
        histogram: [BINS] of all pairs i < j, over −1 … 1.
        close, close_cos: [P, 2] and [P], pairs i < j with |cos| ≥ CLOSE, at most PAIR_CAPACITY.
        n_close: number of all such pairs.
    """

    rows: Tensor
    near: NDArray[np.int32]
    near_cos: NDArray[np.float32]
    lowest: NDArray[np.float32]
    histogram: NDArray[np.int64]
    close: NDArray[np.int32]
    close_cos: NDArray[np.float32]
    n_close: int

    @property
    def max_cos(self) -> NDArray[np.float32]:
        """Largest cosine of each row with another [F]."""
        return self.near_cos[:, 0]

    def cosine(self, i: NDArray[np.integer], j: NDArray[np.integer]) -> NDArray[np.float32]:
        """Cosines of P pairs of rows, i [P] with j [P]: [P]."""
        out = np.empty(len(i), np.float32)
        piece = 1 << 15  # pairs whose rows are in memory at once
        for start in range(0, len(i), piece):
            a, b = (torch.from_numpy(index[start : start + piece]).long() for index in (i, j))
            out[start : start + piece] = (self.rows[a] * self.rows[b]).sum(1).numpy()
        return out

    @classmethod
    def of(cls, matrix: Tensor) -> Geometry:
        """All pairs of rows of a matrix [F, d], block by block on its device."""
        rows = torch.nn.functional.normalize(matrix.detach().float(), dim=1)
        n = len(rows)
        m = min(NEIGHBOURS, max(1, n - 1))
        near = np.zeros((n, m), np.int32)
        near_cos = np.full((n, m), -1.0, np.float32)
        lowest = np.full(n, 1.0, np.float32)
        histogram = torch.zeros(BINS, dtype=torch.int64)
        close, close_cos, n_close, room = [], [], 0, PAIR_CAPACITY
        step = rows_within(4 * n, BLOCK)
        for start in range(0, n if n > 1 else 0, step):
            stop = min(start + step, n)
            cos = rows[start:stop] @ rows.T
            cos.clamp_(-1.0, 1.0)
            # Each block has the cosines of its rows with all rows. The part above the diagonal of the F × F matrix is a
            # triangle and everything right of it, so over all blocks the histogram has every pair i < j once.
            triangle = torch.ones(stop - start, stop - start, dtype=torch.bool, device=cos.device).triu(1)
            for part in (cos[:, start:stop][triangle], cos[:, stop:]):
                histogram += torch.histc(part, BINS, -1.0, 1.0).long().cpu()
            # A row's cosine with itself must win neither: +∞ for the minimum, then −∞ for the maximum.
            own = cos.diagonal(start)
            own.fill_(torch.inf)
            least = cos.amin(1)
            own.fill_(-torch.inf)
            top = cos.topk(m, dim=1)
            lowest[start:stop] = least.cpu().numpy()
            near[start:stop], near_cos[start:stop] = top.indices.cpu().numpy(), top.values.cpu().numpy()
            # Few rows have a close one, and only those are searched. In the order of (i, j), i < j.
            some = ((top.values[:, 0] >= CLOSE) | (least <= -CLOSE)).nonzero()[:, 0]
            found = cos[some]
            pairs = ((found.abs() >= CLOSE) & (torch.arange(n, device=cos.device) > some[:, None] + start)).nonzero()
            n_close += len(pairs)
            pairs = pairs[:room]
            room -= len(pairs)
            pair_cos = found[pairs[:, 0], pairs[:, 1]]
            pairs[:, 0] = some[pairs[:, 0]] + start
            close.append(pairs.cpu().numpy().astype(np.int32))
            close_cos.append(pair_cos.cpu().numpy())
        return cls(
            rows=rows.cpu(),
            near=near,
            near_cos=near_cos,
            lowest=lowest,
            histogram=histogram.numpy(),
            close=np.concatenate(close) if close else np.zeros((0, 2), np.int32),
            close_cos=np.concatenate(close_cos) if close_cos else np.zeros(0, np.float32),
            n_close=n_close,
        )


def random_geometry(n: int, d: int, seed: int, sample: int = 512) -> NDArray[np.float32]:
    """The null of `max_cos`: largest cosine of random directions with n − 1 others in d dimensions.

    Args:
        n: number of directions.
        d: dimensions.
        seed: of the directions.
        sample: number of directions whose largest cosine is computed.

    Returns:
        [min(sample, n)].
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)
    largest = []
    for part in torch.split(torch.arange(min(sample, n)), rows_within(4 * n, sample)):
        cos = rows[part] @ rows.T
        cos[torch.arange(len(part)), part] = -torch.inf
        largest.append(cos.amax(1))
    found: NDArray[np.float32] = torch.cat(largest).numpy()
    return found
