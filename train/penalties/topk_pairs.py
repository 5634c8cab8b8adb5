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
    """Pairs i < j [P], as i·F + j (ascending) and apart, with their overlap: differentiable.

    `real` [P] is False where fewer pairs overlap than there is room for: such a key is F², its overlap 0.
    """

    key: Tensor
    i: Tensor
    j: Tensor
    overlap: Tensor
    real: Tensor


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
        if codes.latents is None:
            pairs = select_dense(codes, weight, n_pairs)
        else:
            pairs = (select if codes.values.device.type == "cpu" else select_ahead)(codes, weight, n_pairs)
        value = pairs.overlap
        if c.on == "decoder":
            rows = torch.nn.functional.normalize(coder.w_dec, dim=1)
            value = torch.linalg.vecdot(rows[pairs.i], rows[pairs.j])
        threshold = self._update_threshold(value.detach(), pairs.real)
        self._observe(pairs, value.detach(), codes.n_latents)
        excess = torch.where(pairs.real, value - threshold, 0.0).relu()
        return excess.square().sum() / n_pairs + 0 * codes.values.sum()

    def _update_threshold(self, value: Tensor, real: Tensor) -> Tensor | float:
        c = self.config
        if c.threshold != "adaptive":
            return float(c.threshold)
        if len(value):
            some = torch.where(real, value, torch.nan)[:: 1 + len(value) // 1_000_000].float()
            now, before = torch.nanquantile(some, c.quantile), self._threshold
            mean = now if before is None else torch.lerp(now, before, c.ema)
            self._threshold = torch.where(now.isnan(), 0.0 if before is None else before, mean)
        return 0.0 if self._threshold is None else self._threshold

    @torch.no_grad()
    def _observe(self, pairs: Selected, value: Tensor, n_latents: int) -> None:
        real, n_real = pairs.real, pairs.real.sum()
        marked = torch.zeros(n_latents + 1, device=value.device)  # one place more, for what is not real
        for ids in (pairs.i, pairs.j):
            marked[torch.where(real, ids, n_latents)] = 1
        selected = marked[:-1]
        self._frequency = selected if self._frequency is None else self._frequency.lerp(selected, 1 - self.config.ema)
        measured = {"pairs": n_real, "unique_latents": selected.sum()}
        for name, of in ((self.config.on, value), ("overlap", pairs.overlap.detach())) if len(value) else ():
            measured[f"max_{name}"] = torch.where(real, of, -torch.inf).max()
            measured[f"mean_{name}"] = torch.where(real, of, 0.0).sum() / n_real.clamp_min(1)
        if self._threshold is not None:
            measured["threshold"] = self._threshold
        before = self._previous
        if before is not None and len(before):
            place = torch.searchsorted(before, pairs.key).clamp_max(len(before) - 1)
            both = (real & (before[place] == pairs.key)).sum()
            either = n_real + (before < n_latents * n_latents).sum() - both
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
    return Selected(key, i, j, overlap, torch.ones_like(key, dtype=torch.bool))


def select_ahead(codes: Codes, rows: Tensor, n_pairs: int) -> Selected:
    """As `select`, without a size that depends on a code, so that the host does not wait for a device.

    Two slots of a row that do not both fire have the key F², which is sorted last. There is room for `n_pairs` pairs,
    or for as many as there are pairs of slots.
    """
    assert codes.latents is not None
    n, none = codes.n_latents, codes.n_latents * codes.n_latents
    values, latents = codes.values * rows.unsqueeze(1), codes.latents
    norm = values.new_zeros(n).index_add(0, latents.reshape(-1), values.square().reshape(-1))
    norm = torch.where(norm > 0, norm, 1.0).sqrt()
    first, second = torch.triu_indices(values.shape[1], values.shape[1], 1, device=values.device)
    a, b = latents[:, first], latents[:, second]
    product = values[:, first] * values[:, second]
    key = torch.where(product > 0, torch.minimum(a, b) * n + torch.maximum(a, b), none).flatten()
    with torch.no_grad():
        ordered, order = key.sort(stable=True)
        group = torch.cat([torch.zeros_like(ordered[:1]), (ordered[1:] != ordered[:-1]).long()]).cumsum(0)
        # of each group of equal keys its key, ascending, and its overlap; there are at most as many as keys
        key = torch.full_like(ordered, none).scatter_(0, group, ordered)
        sums = product.new_zeros(len(group)).index_add_(0, group, product.flatten()[order])
        overlap = torch.where(key < none, sums / (norm[(key // n).clamp_max(n - 1)] * norm[key % n]), -1.0)
        best = overlap.topk(min(n_pairs, len(key)), sorted=False).indices.sort().values
        place = torch.full_like(group, len(best)).scatter_(0, best, torch.arange(len(best), device=best.device))
        into = torch.empty_like(order).scatter_(0, order, place[group])  # len(best): none of these pairs
        key = key[best]
        real, i, j = key < none, (key // n).clamp_max(n - 1), key % n
    overlap = product.new_zeros(len(best) + 1).index_add(0, into, product.flatten())[:-1] / (norm[i] * norm[j])
    return Selected(key, i, j, torch.where(real, overlap, 0.0), real)


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
    key = i[best] * n + j[best]
    return Selected(key, i[best], j[best], flat[best], torch.ones_like(key, dtype=torch.bool))
