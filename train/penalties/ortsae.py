"""OrtSAE: decoder rows are pushed from their nearest neighbour within random chunks (arXiv 2509.22033)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
from .base import Penalty, StepBatch
from .configs.base import PenaltyConfig
from .configs.ortsae import OrtSAEConfig


class OrtSAE(Penalty):
    """Mean over latents i of (max_{j≠i} cos(w_i, w_j))², j in the same chunk.

    The chunks are of nearly equal size, so that every row meets about as many others. The nearest j is found without a
    graph; the gradient (to both rows) then needs one cosine per row, not a chunk² matrix.
    """

    config_class: ClassVar[type[PenaltyConfig]] = OrtSAEConfig
    config: OrtSAEConfig

    def __init__(self, config: OrtSAEConfig) -> None:
        super().__init__(config)
        self._largest: Tensor | None = None

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        rows = torch.nn.functional.normalize(coder.w_dec, dim=1)
        n = rows.shape[0]
        if n < 2:
            return rows.sum() * 0
        n_chunks = min(-(-n // self.config.chunk), n // 2)
        order = torch.arange(n, device=rows.device)
        if n_chunks > 1:
            order = torch.randperm(n, generator=batch.generator).to(rows.device)
        nearest = torch.empty_like(order)
        for chunk in order.tensor_split(n_chunks):
            nearest[chunk] = chunk[_nearest(rows.detach()[chunk])]
        cosine: Tensor = torch.linalg.vecdot(rows, rows[nearest])
        self._largest = cosine.detach().max()
        return cosine.square().mean()

    def metrics(self) -> dict[str, float]:
        return {} if self._largest is None else {"max_cosine": float(self._largest)}


def _nearest(rows: Tensor, tile: int = 2048) -> Tensor:
    """For each unit row of [n, d] the index of the other row with the largest cosine: [n]."""
    found: list[Tensor] = []
    for start in range(0, rows.shape[0], tile):
        cosines: Tensor = rows[start : start + tile] @ rows.T
        cosines.diagonal(start).fill_(-torch.inf)
        found.append(cosines.argmax(dim=1))
    return torch.cat(found)
