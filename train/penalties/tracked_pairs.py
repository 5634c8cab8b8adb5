"""Tracked pairs: a hinge on the pairs of latents that stay correlated over many batches, and on no others.

This project's own definition. Within one batch, r of two rare latents is mostly noise, and a hinge on every pair
punishes pairs that are no duplicates. Here a window of batches nominates the pairs, running sums follow them from batch
to batch, and only their r is penalised.

How it runs, with s_t the sums behind r (rows, Σz, Σz², Σz_i z_j) and b_t those of batch t alone:

    nomination    s_0 = (memory / window) · Σ of the window: r is the window's, weighing as much as `memory` batches
    each batch    s_t = (1 − 1/memory) · s_{t−1} + b_t

All sums are linear in the rows, so s_t is a sum over past rows whose weights fall by 1 − 1/memory per batch, and r(s_t)
is Pearson's r under these weights. A batch adds `rows` to the first sum like any other, so rows(s) / rows(b), about
`memory` in the long run, says how many batches r is taken over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
from ..window.codes import CodeWindow
from ..window.pairs import PairScan, scan_pairs
from ..window.tracked import PairIds, TrackedSums, columns, firings
from .base import Merges, Penalty, StepBatch
from .configs.base import PenaltyConfig
from .configs.tracked_pairs import TrackedPairsConfig


class TrackedPairs(Penalty):
    """(1/F) Σ_p relu(|r_p| − τ)² over the nominated pairs, r_p over rows excluding position 0, recent ones weighing
    most.

    r of the running sums is less noisy than that of one batch, and it falls while the pair separates, so that the push
    ends with its cause and not with the next nomination. Gradients reach the rows of this batch only. They are scaled
    by (rows behind r) / (rows of the batch), as if every row behind r received one, so that a weight means the same for
    every memory.

    docs/anti-duplication.md compares this with r of the batch alone, and with r of the window, not updated.
    """

    config_class: ClassVar[type[PenaltyConfig]] = TrackedPairsConfig
    config: TrackedPairsConfig

    def __init__(self, config: TrackedPairsConfig) -> None:
        super().__init__(config)
        self._window = CodeWindow(config.window)
        self._tracked: tuple[PairIds, TrackedSums] | None = None
        self._due = False
        self._merges: Merges | None = None

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        c = self.config
        if self._due:
            self._nominate(codes.values)
        remaining = self._until_nomination(batch.step)
        self._due = batch.step >= c.start and remaining == 0
        if remaining < c.window:
            self._window.push(codes, batch.position)
        if self._tracked is None:
            return codes.values.sum() * 0
        # This batch's sums are part of s_t, but past sums are constants: the gradient of r(s_t) is worked out by hand
        # for this batch's codes, and `_Known` hands it to autograd.
        pairs, past = self._tracked
        with torch.no_grad():
            here = (firings if codes.values.device.type == "cpu" else columns)(codes, batch.rest, pairs)
            sums = past.scaled(1 - 1 / c.memory) + here.sums
            r = sums.r(pairs)
            excess = (r.abs() - c.threshold).relu()
            value = excess.square().sum() / codes.n_latents
            pull = 2 * excess * r.sign() / codes.n_latents * (sums.rows / here.sums.rows.clamp_min(1))
            moved = self._moved(sums, pairs)
            gradient = here.gradient(sums, pairs, r, pull, moved, like=codes.values)
        self._tracked = pairs, sums
        return _Known.apply(codes.values, value, gradient)  # type: ignore[no-any-return, no-untyped-call]

    def _moved(self, sums: TrackedSums, pairs: PairIds) -> tuple[Tensor, Tensor]:
        """By how much the left and the right latent of each pair is moved, [P] each: 1 or 0."""
        if self.config.push == "both":
            ones = torch.ones_like(sums.cross)
            return ones, ones
        left = (sums.square[pairs.left] < sums.square[pairs.right]).to(sums.cross)
        return left, 1 - left

    def _until_nomination(self, step: int) -> int:
        """How many more batches this penalty sees before the next nomination: 0 at the last of a window."""
        past, every = step % self.config.period, self.config.every
        return 0 if past < every else -((past - self.config.period) // every)

    def _nominate(self, like: Tensor) -> None:
        """Track the pairs with |r| ≥ τ − margin over the window, and clear it."""
        c = self.config
        share = c.memory / len(self._window)
        scan = scan_pairs(
            self._window.codes(),
            self._window.position() > 0,
            threshold=c.threshold - c.margin,
            min_fired=c.min_fired,
            min_both=c.min_both,
        )
        self._window.clear()
        self._tracked = None
        if c.merge is not None:
            self._merges = duplicates(scan, c.merge, like)
        if len(scan.r):
            pairs, sums = _begun(scan, like)
            self._tracked = pairs, sums.scaled(share)

    def take_merges(self) -> Merges | None:
        merges, self._merges = self._merges, None
        if merges is not None and self._tracked is not None:
            pairs, sums = self._tracked
            going = torch.isin(pairs.ids, merges.gone)
            stay = ~(going[pairs.left] | going[pairs.right])
            left = PairIds(pairs.ids, pairs.left[stay], pairs.right[stay])
            self._tracked = (left, replace(sums, cross=sums.cross[stay])) if bool(stay.any()) else None
        return merges

    def metrics(self) -> dict[str, float]:
        """How many pairs are tracked, in how many latents, and the largest |r| of them."""
        if self._tracked is None:
            return {"pairs": 0, "unique_latents": 0}
        pairs, sums = self._tracked
        return {
            "pairs": len(pairs.left),
            "unique_latents": len(pairs.ids),
            "max_r": float(sums.r(pairs).abs().max()),
        }

    def state(self) -> dict[str, Tensor]:
        # merges need no state: they are taken in the step that finds them
        kept = self._window.state() | {"due": torch.tensor(self._due)}
        for part in self._tracked or ():
            kept |= {field.name: getattr(part, field.name) for field in fields(part)}
        return kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._due = bool(state["due"])
        self._window.load_state(state, state["due"].device)
        self._tracked = None
        if "ids" in state:
            pairs, sums = ({field.name: state[field.name] for field in fields(part)} for part in (PairIds, TrackedSums))
            self._tracked = PairIds(**pairs), TrackedSums(**sums)


def duplicates(scan: PairScan, threshold: float, like: Tensor) -> Merges | None:
    """Which latents go: of each pair with r above the threshold, the strongest pairs first, the one with the smaller
    Σ z², unless a latent of the pair is in another already. None where there is no such pair."""
    energy, used = scan.moments.sum_sq, set[int]()
    keep, gone, ratio = [], [], []
    for p in np.argsort(-scan.r, kind="stable"):
        if scan.r[p] <= threshold:
            break
        i, j = int(scan.i[p]), int(scan.j[p])
        if i in used or j in used:
            continue
        used |= {i, j}
        strong, weak = (i, j) if energy[i] >= energy[j] else (j, i)
        keep.append(strong)
        gone.append(weak)
        ratio.append(float(scan.moments.sum[weak] / scan.moments.sum[strong]))
    if not keep:
        return None
    device = like.device
    ratios = torch.tensor(ratio, device=device).to(like)
    return Merges(torch.tensor(keep, device=device), torch.tensor(gone, device=device), ratios)


def _begun(scan: PairScan, like: Tensor) -> tuple[PairIds, TrackedSums]:
    """The pairs a scan found, and their sums over its window: Σ z_i z_j is solved from r, means and deviations."""
    ids, place = np.unique(np.concatenate([scan.i, scan.j]), return_inverse=True)
    left, right = place[: len(scan.i)], place[len(scan.i) :]
    moments = scan.moments
    mean, std = moments.mean[ids], moments.std[ids]
    cross = moments.rows * (scan.r * std[left] * std[right] + mean[left] * mean[right])
    sums = (np.float64(moments.rows), moments.sum[ids], moments.sum_sq[ids], cross)
    return (
        PairIds(*(torch.from_numpy(array).to(like.device) for array in (ids, left, right))),
        TrackedSums(*(torch.as_tensor(array).to(like) for array in sums)),
    )


class _Known(torch.autograd.Function):
    """A value whose gradient with respect to the codes' values is known already."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return weight * gradient, None, None
