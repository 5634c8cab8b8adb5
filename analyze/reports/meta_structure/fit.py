"""A BatchTopK coder of a coder's own decoder rows, and the variance of these that it explains.

Leask et al. 2025 (arXiv 2502.04878) and Bussmann et al. 2025 (arXiv 2503.17547, appendix D.1); SAEBench's
evals/meta_structure with its numbers: a quarter as many meta-latents as latents, 4 of them per row on average, 1,500
steps of Adam on 1,024 rows drawn with replacement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ....shared.coders import Coder, build_coder
from ....shared.coders.configs.batchtopk import BatchTopKConfig
from ....shared.coders.normalisation import SiteMoments
from ....shared.codes.sparse import SparseCodes
from .config import MetaStructureConfig

THRESHOLD_EMA = 0.99
"""Decay of the average that sets the threshold of inference: a run of 1,500 steps is short."""

DEAD_AFTER = 10
"""A meta-latent is dead after this many times all rows without firing, and AuxK then works on it."""


META_SEED, RANDOM_SEED = 7_919, 104_729
"""Added to the seed of the analysis: with the seed of a run, the meta-coder would begin with the very rows that the
run's coder began with, and random rows would be the meta-coder's first ones."""


@dataclass(frozen=True)
class Meta:
    """A meta-coder's result on F decoder rows.

    Attributes:
        explained: 1 − Σ‖row − reconstruction‖² / Σ‖row − mean row‖²; None where the rows do not differ.
        codes: [F, meta-latents].
    """

    explained: float | None
    codes: SparseCodes


def meta_of(rows: Tensor, config: MetaStructureConfig, seed: int) -> Meta:
    """Trains a meta-coder on rows [F, d] float32, and measures it on all of them, with its threshold."""
    spread = float((rows - rows.mean(dim=0)).square().sum())
    width = max(math.ceil(len(rows) * config.width_ratio), config.k)
    if not spread > 0:
        return Meta(None, SparseCodes.from_dense(np.zeros((len(rows), width), np.float32)))
    with torch.enable_grad():
        coder = _trained(rows, config, width, seed)
    with torch.inference_mode():
        codes = coder.encode(rows)
        missed = float((rows - coder.decode(codes, rows)).square().sum())
    return Meta(1 - missed / spread, SparseCodes.from_parts([codes], width))


def random_rows(n: int, d: int, seed: int) -> Tensor:
    """n directions [n, d] of length 1, none of which has to do with another."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(RANDOM_SEED + seed))
    return torch.nn.functional.normalize(rows, dim=1)


def _trained(rows: Tensor, config: MetaStructureConfig, width: int, seed: int) -> Coder:
    generator = torch.Generator().manual_seed(META_SEED + seed)
    settings = BatchTopKConfig(latents=width, k=config.k, normalise="scalar", threshold_ema=THRESHOLD_EMA)
    coder = build_coder(settings, rows.shape[1], rows.shape[1], tied=True, generator=generator).to(rows.device)
    moments = SiteMoments(rows.double().mean(dim=0), rows.double().var(dim=0, correction=0))
    coder.set_normalisation(moments, moments)
    coder.dead_after = DEAD_AFTER * len(rows)
    optimizer = torch.optim.Adam(coder.parameters(), lr=config.learning_rate)
    for _ in range(config.steps):
        drawn = torch.randint(len(rows), (config.batch,), generator=generator)
        u = coder.normalise_input(rows[drawn.to(rows.device)])
        codes = coder.encode_normalised(u)
        loss = torch.stack(list(coder.losses(u, u, codes).values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        coder.project_gradients()
        optimizer.step()
        coder.project_parameters()
        coder.after_step(codes)
    return coder.eval()
