"""Top-k pairs: orthogonality of the few pairs of latents that fire together most strongly in this batch.

This project's own definition; there is no published source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
from .base import Penalty, StepBatch
from .configs.base import PenaltyConfig
from .configs.topk_pairs import TopkPairsConfig


class Selected(NamedTuple):
    """Pairs i < j [P], as i·F + j (ascending) and apart, with their overlap: differentiable."""

    key: Tensor
    i: Tensor
    j: Tensor
    overlap: Tensor


class TopkPairs(Penalty):
    """mean over the P selected pairs of relu(S_ij − τ)², S_ij = Σ_t z_ti z_tj / (‖z_i‖ ‖z_j‖) over the batch's rows.

    P is fixed; where fewer pairs fire together, the others overlap by 0 and cost nothing. Codes stay sparse: only pairs
    that share a row are ever formed.
    """

    config_class: ClassVar[type[PenaltyConfig]] = TopkPairsConfig
    config: TopkPairsConfig

    def __init__(self, config: TopkPairsConfig) -> None:
        super().__init__(config)
        self._threshold: Tensor | None = None
        self._previous: Tensor | None = None
        self._frequency: Tensor | None = None
        self._measured: dict[str, Tensor] = {}

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        c = self.config
        n_pairs = c.n_pairs(codes.n_latents)
        weight = torch.ones_like(batch.rest) if c.with_bos else batch.rest
        pairs = select_dense(codes, weight, n_pairs) if codes.latents is None else select(codes, weight, n_pairs)
        value = pairs.overlap
        if c.on == "decoder":
            rows = torch.nn.functional.normalize(coder.w_dec, dim=1)
            value = torch.linalg.vecdot(rows[pairs.i], rows[pairs.j])
        threshold = self._update_threshold(value.detach())
        self._observe(pairs, value.detach(), codes.n_latents)
        return (value - threshold).relu().square().sum() / n_pairs + 0 * codes.values.sum()

    def _update_threshold(self, value: Tensor) -> Tensor | float:
        c = self.config
        if c.threshold != "adaptive":
            return float(c.threshold)
        if len(value):
            now = torch.quantile(value[:: 1 + len(value) // 1_000_000].float(), c.quantile)
            self._threshold = now if self._threshold is None else torch.lerp(now, self._threshold, c.ema)
        return 0.0 if self._threshold is None else self._threshold

    @torch.no_grad()
    def _observe(self, pairs: Selected, value: Tensor, n_latents: int) -> None:
        selected = torch.zeros(n_latents, device=value.device)
        selected[pairs.i] = 1
        selected[pairs.j] = 1
        self._frequency = selected if self._frequency is None else self._frequency.lerp(selected, 1 - self.config.ema)
        measured = {"pairs": torch.tensor(len(pairs.key)), "unique_latents": selected.sum()}
        if len(value):
            measured |= {f"max_{self.config.on}": value.max(), f"mean_{self.config.on}": value.mean()}
            measured |= {"max_overlap": pairs.overlap.detach().max(), "mean_overlap": pairs.overlap.detach().mean()}
        if self._threshold is not None:
            measured["threshold"] = self._threshold
        if self._previous is not None:
            both = torch.isin(pairs.key, self._previous, assume_unique=True).sum()
            either = len(pairs.key) + len(self._previous) - both
            measured["stability"] = both / either.clamp_min(1)
        measured["always_selected"] = (self._frequency > 0.9).float().mean()
        self._previous, self._measured = pairs.key, measured

    def metrics(self) -> dict[str, float]:
        """pairs and unique latents in them; overlap (and value) at most and on average; τ; stability: the Jaccard index
        of this selection and the last; always_selected: share of latents in over 90 % of recent selections."""
        return {name: float(value) for name, value in self._measured.items()}

    def state(self) -> dict[str, Tensor]:
        kept = {"threshold": self._threshold, "previous": self._previous, "frequency": self._frequency}
        return {name: value for name, value in kept.items() if value is not None}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._threshold, self._previous = state.get("threshold"), state.get("previous")
        self._frequency = state.get("frequency")


def select(codes: Codes, rows: Tensor, n_pairs: int) -> Selected:
    """The `n_pairs` pairs with the largest overlap of sparse codes; all that overlap, where they are fewer.

    A row with K slots forms its K(K − 1)/2 pairs; a pair of latents i < j gets the key i·F + j, and all its rows are
    summed under it. That happens twice: first without gradients over all pairs, to find the best, then with gradients
    over the rows of these alone, so that autograd keeps only what it needs. Keys are sorted, so the sums run in the
    same order each time.

    Args:
        rows: [B] bool, the rows that count.
        n_pairs: P.
    """
    assert codes.latents is not None
    n = codes.n_latents
    values, latents = codes.values[rows], codes.latents[rows]
    norm = values.new_zeros(n).index_add(0, latents.reshape(-1), values.square().reshape(-1))
    # Entries of 0 are no firing; their gradient through the square root would be infinite where the norm is 0.
    norm = torch.where(norm > 0, norm, 1.0).sqrt()
    first, second = torch.triu_indices(values.shape[1], values.shape[1], 1, device=values.device)
    a, b = latents[:, first], latents[:, second]
    together = (values[:, first] > 0) & (values[:, second] > 0)
    key = (torch.minimum(a, b) * n + torch.maximum(a, b))[together]
    row, slot = together.nonzero(as_tuple=True)
    key, group = torch.unique(key, return_inverse=True)  # sorted keys; group: the place of each joint firing's key
    with torch.no_grad():
        product = values[row, first[slot]] * values[row, second[slot]]
        overlap = product.new_zeros(len(key)).index_add(0, group, product)
        overlap = overlap / (norm[key // n] * norm[key % n])
        best = overlap.topk(min(n_pairs, len(key)), sorted=False).indices.sort().values
        place = torch.full((len(key),), -1, dtype=torch.int64, device=key.device)
        place[best] = torch.arange(len(best), device=key.device)
        kept = place[group] >= 0
    # From here on only the joint firings of the selected pairs, `group` their place among these.
    row, slot, group = row[kept], slot[kept], place[group[kept]]
    product = values[row, first[slot]] * values[row, second[slot]]
    key = key[best]
    i, j = key // n, key % n
    overlap = product.new_zeros(len(key)).index_add(0, group, product) / (norm[i] * norm[j])
    return Selected(key, i, j, overlap)


def select_dense(codes: Codes, rows: Tensor, n_pairs: int) -> Selected:
    """As `select`, for dense codes: by the Gram matrix of all latents."""
    z = codes.values[rows]
    squares = z.square().sum(dim=0)
    unit = z / torch.where(squares > 0, squares, 1.0).sqrt()
    n = codes.n_latents
    overlap = unit.T @ unit
    i, j = torch.triu_indices(n, n, 1, device=z.device)
    flat = overlap[i, j]
    best = flat.detach().topk(min(n_pairs, len(flat)), sorted=False).indices.sort().values
    best = best[flat.detach()[best] > 0]
    return Selected(i[best] * n + j[best], i[best], j[best], flat[best])
