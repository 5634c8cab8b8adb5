"""Self-contrastive: latents with similar contributions are pushed apart, rows are kept recognisable under dropout.

This project's own definition; there is no published source.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
from ...shared.coders.ops import weighted_rows
from ..schedules import cosine, linear
from .base import Penalty, StepBatch
from .configs.base import PenaltyConfig
from .configs.self_contrastive import SelfContrastiveConfig

TILE = 1024
"""Rows compared with all others at a time: bounds the memory by TILE·n instead of n²."""


class SelfContrastive(Penalty):
    """(1/n) Σ_{i<j} relu(cos(w_i, w_j) − θ_t)² + λ_t · InfoNCE.

    The sum runs over the n latents that fire in the batch: a latent's contributions z_i w_i all point along its decoder
    row. With `projection` the pairs are nominated by the cosine of R w_i and R w_j, R ~ N(0, 1/width), drawn anew at
    each step, and (with `rescore`) scored exactly. A pair that one projection misses costs nothing at this step; the
    next step draws another.

    InfoNCE (arXiv 1807.03748): two views of a row are its reconstruction under two draws of latent dropout, projected
    too; each row must find its other view among those of the batch, in both directions.
    """

    config_class: ClassVar[type[PenaltyConfig]] = SelfContrastiveConfig
    config: SelfContrastiveConfig

    def __init__(self, config: SelfContrastiveConfig) -> None:
        super().__init__(config)
        self._measured: dict[str, float | Tensor] = {}
        self._nominated: tuple[Tensor, Tensor, Tensor, float] | None = None

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        c = self.config
        threshold = cosine(c.threshold_start, c.threshold_end, batch.step / batch.total_steps)
        weight = linear(0.0, c.contrastive_weight, batch.step / c.contrastive_warmup)
        projection = self._projection(coder, batch)
        fired = codes.fired().nonzero().squeeze(1)
        rows = torch.nn.functional.normalize(coder.w_dec[fired], dim=1)
        if projection is None:
            orthogonality, n_pairs = all_pairs(rows, threshold)
        else:
            i, j, approximate = nominate(rows.detach() @ projection, threshold - c.slack, c.max_pairs)
            n_pairs = torch.tensor(len(i))
            self._nominated = (rows.detach(), i, j, threshold)
            if c.rescore:
                orthogonality = listed_pairs(rows, i, j, threshold)
            else:
                orthogonality = listed_pairs(rows, i, j, threshold, approximate)
        self._measured = {
            "threshold": threshold,
            "pairs": n_pairs,
            "orthogonality": orthogonality.detach(),
            "contrastive_weight": weight,
        }
        if weight == 0:
            return orthogonality
        contrastive = self._contrastive(batch, coder, codes, projection)
        self._measured["contrastive"] = contrastive.detach()
        return orthogonality + weight * contrastive

    def metrics(self) -> dict[str, float]:
        """θ, pairs and the two terms. With a projection also its recall (share of the pairs beyond θ that were
        nominated) and precision (share of the nominated pairs that are beyond θ), from exact cosines computed when a
        line is logged."""
        measured = {name: float(value) for name, value in self._measured.items()}
        if self._nominated is not None:
            rows, i, j, threshold = self._nominated
            true = count_beyond(rows, threshold)
            found = sum(int((torch.linalg.vecdot(rows[a], rows[b]) > threshold).sum()) for a, b in _tiles(i, j))
            measured["true_pairs"] = true
            measured |= {name: found / n for name, n in (("recall", true), ("precision", len(i))) if n}
        return measured

    def _projection(self, coder: Coder, batch: StepBatch) -> Tensor | None:
        """R [d_out, width], transposed for rows; None: the exact form."""
        if self.config.projection is None:
            return None
        width = self.config.projection
        drawn: Tensor = torch.randn(coder.d_out, width, generator=batch.generator, dtype=torch.float32)
        return drawn.to(coder.w_dec) / math.sqrt(width)

    def _contrastive(self, batch: StepBatch, coder: Coder, codes: Codes, projection: Tensor | None) -> Tensor:
        views = []
        for _ in range(2):
            kept = torch.rand(codes.values.shape, generator=batch.generator) >= self.config.dropout
            dropped = Codes(codes.values * kept.to(codes.values.device), codes.latents, codes.n_latents, codes.lists)
            view = dropped.decode(coder.w_dec)
            views.append(torch.nn.functional.normalize(view if projection is None else view @ projection, dim=1))
        similar = views[0] @ views[1].T / self.config.temperature
        own = torch.arange(len(similar), device=similar.device)
        both = torch.nn.functional.cross_entropy(similar, own) + torch.nn.functional.cross_entropy(similar.T, own)
        return both / 2


@torch.no_grad()
def nominate(projected: Tensor, least: float, max_pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """The at most `max_pairs` pairs i < j of rows [n, width] with the largest cosines above `least`: (i, j, cosine).

    Invariant: after each tile, (i, j, score) are the best `max_pairs` of all pairs seen. Cutting the list after every
    tile is exact, because what falls out has `max_pairs` better ones already, and it bounds the memory.
    """
    unit = torch.nn.functional.normalize(projected, dim=1)
    i, j, score = _empty(unit)
    for start in range(0, unit.shape[0], TILE):
        # Columns before the tile belong to pairs that an earlier tile has seen; triu(1) keeps i < j within it.
        cosines = unit[start : start + TILE] @ unit[start:].T
        a, b = (cosines.triu(1) > max(least, 0.0)).nonzero(as_tuple=True)
        i, j, score = torch.cat([i, a + start]), torch.cat([j, b + start]), torch.cat([score, cosines[a, b]])
        if len(score) > max_pairs:
            score, best = score.topk(max_pairs, sorted=False)
            i, j = i[best], j[best]
    return i, j, score


def _empty(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.zeros(0, dtype=torch.int64, device=like.device)
    return ids, ids, like.new_zeros(0)


def listed_pairs(rows: Tensor, i: Tensor, j: Tensor, threshold: float, cosines: Tensor | None = None) -> Tensor:
    """(1/n) Σ_p relu(cos_p − θ)² over listed pairs of unit rows [n, d].

    The gradient of row i is Σ_j (2/n) relu(cos_ij − θ) w_j: one sparse product, not two gathered [P, d] matrices. Each
    pair appears twice in it, as (i, j) and (j, i); sorting by the left end groups the products by row.

    Args:
        rows: [n, d] unit rows.
        i, j: [P] places in `rows`.
        threshold: θ.
        cosines: [P] used instead of the exact ones.
    """
    n = max(rows.shape[0], 1)
    plain = rows.detach()
    if cosines is None:
        tiles = [slice(start, start + TILE) for start in range(0, len(i), TILE)]
        pieces = [torch.linalg.vecdot(plain[i[tile]], plain[j[tile]]) for tile in tiles]
        cosines = torch.cat(pieces) if pieces else plain.new_zeros(0)
    excess = (cosines - threshold).relu()
    left, right = torch.cat([i, j]), torch.cat([j, i])
    order = left.argsort(stable=True)
    counts = torch.bincount(left, minlength=rows.shape[0])
    weights = (2 / n * torch.cat([excess, excess]))[order]
    gradient = weighted_rows(weights, right[order], plain, offsets=counts.cumsum(0) - counts)
    return _with_gradient(excess.square().sum() / n, rows, gradient)


def all_pairs(rows: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The same over all pairs, tile by tile: (value, how many pairs are beyond the threshold).

    A tile holds its rows against all rows, so every pair is met twice; value and count are halved.
    """
    n = max(rows.shape[0], 1)
    plain = rows.detach()
    gradient = torch.empty_like(plain)
    value, beyond = plain.new_zeros(()), torch.zeros((), dtype=torch.int64, device=rows.device)
    for start in range(0, plain.shape[0], TILE):
        excess = (plain[start : start + TILE] @ plain.T - threshold).relu()
        excess.diagonal(start).zero_()
        gradient[start : start + TILE] = excess @ plain * (2 / n)
        value += excess.square().sum() / (2 * n)
        beyond += (excess > 0).sum()
    return _with_gradient(value, rows, gradient), beyond // 2


@torch.no_grad()
def count_beyond(rows: Tensor, threshold: float) -> int:
    """How many pairs of unit rows [n, d] have a cosine beyond the threshold, exactly."""
    beyond = 0
    for start in range(0, rows.shape[0], TILE):
        cosines = rows[start : start + TILE] @ rows[start:].T
        beyond += int((cosines > threshold).triu(1).sum())
    return beyond


def _tiles(i: Tensor, j: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The pairs, some thousands at a time."""
    tiles = [slice(start, start + 4 * TILE) for start in range(0, len(i), 4 * TILE)]
    return [(i[tile], j[tile]) for tile in tiles]


def _with_gradient(value: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
    """A scalar of this value with this gradient to `rows`: value + ⟨rows, gradient⟩ − the same number, detached."""
    linear_part = (rows * gradient.detach()).sum()
    return value.detach() + (linear_part - linear_part.detach())
