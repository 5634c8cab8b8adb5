"""Massive rows: a few latents explain a massive row, and every other latent is silent there.

This project's own definition. The massive rows of a site lie along a few directions. TopK lets k latents fire on each,
and as these rows are few and alike, the same k do: by r over all rows, dominated by rows of such a size, every two of
them are duplicates. Codes cannot be told apart along one direction, so pushing pairs apart does not help; latents can
only fall silent.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
from .base import Penalty, StepBatch
from .configs.base import PenaltyConfig
from .configs.massive_rows import MassiveRowsConfig


class MassiveRows(Penalty):
    """(1/(B d)) Σ_b Σ_f relu(a_bf + margin), over the rows b that are massive at the source and the latents f beyond
    the `keep` largest of each; a = u W_encᵀ + b_enc, the pre-activations of all latents.

    A batch has few such rows, or none, so this is a product of a few rows. All latents are pushed, not only the k that
    fire: those that take their places would fire there next. Biases receive no gradient: they would fall on every row.
    """

    config_class: ClassVar[type[PenaltyConfig]] = MassiveRowsConfig
    config: MassiveRowsConfig

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        u = batch.u[:0] if batch.massive_input is None else batch.u[batch.massive_input & (batch.position > 0)]
        if not len(u):
            return codes.values.sum() * 0
        a = coder.centred(u) @ coder.w_enc.T + coder.b_enc.detach()
        strongest = torch.topk(a.detach(), min(self.config.keep, a.shape[1]), dim=1).indices
        return (a + self.config.margin).relu().scatter(1, strongest, 0.0).sum() / batch.u.numel()
