"""Sums over pairs of latents on the device, as a candidate: the package counts pairs on the CPU until this is measured.

The codes stay sparse. Each row's pairs i ≤ j are formed on the device and added to one matrix by atomics: N·k²/2
additions, as on the CPU. Counts are exact. Sums are float64, and the last bits depend on the order in which the device
adds. The matrix takes 12 bytes for each of the F² pairs: 4.1 GB for F = 18,432.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sparse_pipeline.shared.codes.sparse import SparseCodes

PAIRS_AT_ONCE = 1 << 24
"""Pairs formed at a time, about 40 bytes each."""


class ScatteredPairs:
    """Σ z_i z_j and n_ij of the pairs i ≤ j, above the diagonal of `sums` (float64) and `counts` (int32), [F, F]."""

    def __init__(self, n_latents: int, device: torch.device) -> None:
        self.n_latents, self.device = n_latents, device
        self.sums = torch.zeros(n_latents, n_latents, dtype=torch.float64, device=device)
        self.counts = torch.zeros(n_latents, n_latents, dtype=torch.int32, device=device)

    def add(self, codes: SparseCodes) -> None:
        """Add rows; nothing is read back."""
        width = int(codes.l0.max(initial=1))
        first, second = torch.triu_indices(width, width, device=self.device)
        for values, latents in self._padded(codes, max(1, PAIRS_AT_ONCE // len(first))):
            # A row's latents ascend, so first ≤ second means i ≤ j; a slot without a code adds 0 to some pair.
            pair = (latents[:, first] * self.n_latents + latents[:, second]).flatten()
            product = (values[:, first].double() * values[:, second].double()).flatten()
            both = ((values[:, first] > 0) & (values[:, second] > 0)).to(torch.int32).flatten()
            self.sums.view(-1).index_add_(0, pair, product)
            self.counts.view(-1).index_add_(0, pair, both)

    def _padded(self, codes: SparseCodes, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(values, latents) [n, width] of up to `rows` rows at a time; empty slots have value 0 and latent 0."""
        width = int(codes.l0.max(initial=1))
        for start in range(0, codes.n_rows, rows):
            indptr = codes.indptr[start : start + rows + 1]
            entries = slice(indptr[0], indptr[-1])
            length, values, latents = (
                torch.from_numpy(array).to(self.device)
                for array in (np.diff(indptr), codes.values[entries], codes.latents[entries])
            )
            inside = torch.arange(width, device=self.device) < length[:, None]
            yield (
                torch.zeros(inside.shape, device=self.device).masked_scatter_(inside, values),
                torch.zeros(inside.shape, dtype=torch.int32, device=self.device)
                .masked_scatter_(inside, latents)
                .long(),
            )
