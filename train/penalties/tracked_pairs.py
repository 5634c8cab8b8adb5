"""Tracked pairs: a hinge on the pairs of latents that stay correlated over many batches, and on no others.

This project's own definition. Within one batch, r of two rare latents is mostly noise, and a hinge on every pair
punishes pairs that are no duplicates. Here a window of batches nominates the pairs, and only their r is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from shared.coders import Coder, Codes
from train.penalties.base import Penalty, PenaltyConfig, StepBatch
from train.window import CodeWindow, scan_pairs


@dataclass(frozen=True, kw_only=True)
class TrackedPairsConfig(PenaltyConfig):
    """Squared correlation beyond a threshold, of pairs nominated from a window of batches."""

    kind: Literal["tracked_pairs"] = "tracked_pairs"
    weight: float = 15.0
    threshold: float = 0.7
    """τ: |r| up to it is free; a little under the r that is reported as a duplicate."""
    margin: float = 0.05
    """Pairs are tracked from τ − margin on: a pair just under the threshold is not dropped and found again."""
    period: int = 100
    """Steps between nominations."""
    window: int = 30
    """Batches that a nomination looks at: those right before it."""
    start: int = 200
    """Steps before the first nomination."""
    min_fired: int = 20
    """Rows of the window (without position 0) that a latent must fire on."""
    min_both: int = 10
    """Rows that a pair must fire on together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold: a correlation in [0, 1), not {self.threshold}")
        if not 0 <= self.margin <= self.threshold:
            raise ValueError(f"margin: between 0 and the threshold {self.threshold}, not {self.margin}")
        if min(self.period, self.window, self.min_both) < 1 or self.start < 0 or self.min_fired < 2:
            raise ValueError("period, window and min_both must be at least 1, start at least 0, min_fired at least 2")
        if self.every != 1:
            raise ValueError("every: tracked_pairs looks at every step; raise period instead")


class TrackedPairs(Penalty):
    """(1/F) Σ_p relu(|r_p| − τ)² over the nominated pairs, r_p over the batch's rows without position 0.

    r is the batch's, not the window's: it falls as the pair separates, so that nothing goes on pushing two latents
    apart until the next nomination. (Held at the window's r, the same hinge cost 12 % of FVU at weight 1 and 72 % at
    weight 100 on a 16M-parameter model; docs/anti-duplication.md.)
    """

    config_class: ClassVar[type[PenaltyConfig]] = TrackedPairsConfig
    config: TrackedPairsConfig

    def __init__(self, config: TrackedPairsConfig) -> None:
        super().__init__(config)
        self._window = CodeWindow(config.window)
        self._pairs: dict[str, Tensor] = {}
        self._due = False

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        c = self.config
        if self._due:
            self._nominate(codes.values)
        self._due = batch.step >= c.start and batch.step % c.period == 0
        if -batch.step % c.period < c.window:
            self._window.push(codes, batch.position)
        if not self._pairs:
            return codes.values.sum() * 0
        r = correlations(codes, batch.rest, self._pairs["ids"], self._pairs["left"], self._pairs["right"])
        return (r.abs() - c.threshold).relu().square().sum() / codes.n_latents

    def _nominate(self, like: Tensor) -> None:
        """Pairs within the margin of the threshold or above it over the window, which is then forgotten."""
        c = self.config
        scan = scan_pairs(self._window.rows(), c.threshold - c.margin, c.min_fired, c.min_both)
        self._window.clear()
        ids, place = np.unique(np.concatenate([scan.i, scan.j]), return_inverse=True)
        self._pairs = {}
        if len(ids):
            left, right = place[: len(scan.i)], place[len(scan.i) :]
            integers = {"ids": ids, "left": left, "right": right}
            self._pairs = {name: torch.from_numpy(value).to(like.device) for name, value in integers.items()}
            self._pairs["r"] = torch.from_numpy(scan.r).to(like)

    def metrics(self) -> dict[str, float]:
        """How many pairs are tracked, in how many latents, and the largest r of them over the window."""
        if not self._pairs:
            return {"pairs": 0, "unique_latents": 0}
        r = self._pairs["r"]
        return {"pairs": len(r), "unique_latents": len(self._pairs["ids"]), "max_r": float(r.max())}

    def state(self) -> dict[str, Tensor]:
        kept = {f"pairs.{name}": value for name, value in self._pairs.items()}
        return kept | self._window.state() | {"due": torch.tensor(self._due)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._pairs = {k.removeprefix("pairs."): v for k, v in state.items() if k.startswith("pairs.")}
        self._due = bool(state["due"])
        self._window.load_state(state, state["due"].device)


def correlations(codes: Codes, rest: Tensor, ids: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Pearson's r of pairs of latents over the batch's rows without position 0, differentiable; 0 where one is silent.

    Only the entries of these latents are touched, B·k/F rows or so of each: on the test machine a tenth of the time of
    the same sums over dense columns.

    Args:
        codes: of B rows.
        rest: [B] bool, the rows that count: without position 0.
        ids: [m] latents, ascending. left, right: [P] places in `ids`.

    Returns:
        [P].
    """
    m, n = len(ids), rest.sum().clamp_min(1)
    row, which, value = _entries(codes, ids, rest)
    total = value.new_zeros(m).index_add(0, which, value)
    square = value.new_zeros(m).index_add(0, which, value * value)
    spread = square - total * total / n  # n · variance
    # which entry is that of latent i on row b; −1: none
    at = torch.full((len(rest), m), -1, dtype=torch.int32, device=value.device)
    at[row, which] = torch.arange(len(row), dtype=torch.int32, device=value.device)
    order = torch.argsort(which, stable=True)
    count = torch.bincount(which, minlength=m)
    begin = count.cumsum(0) - count
    # for every pair, the entries of its left latent, and the right one's on the same row
    per_pair = count[left]
    pair = torch.repeat_interleave(per_pair)
    first = begin[left] - (
        per_pair.cumsum(0) - per_pair
    )  # of a pair's entries in `order`, less those of the pairs before
    mine = order[first[pair] + torch.arange(len(pair), device=left.device)]
    theirs = at[row[mine], right[pair]]
    both = theirs >= 0
    product = value[mine[both]] * value[theirs[both]]
    cross = value.new_zeros(len(left)).index_add(0, pair[both], product) - total[left] * total[right] / n
    return cross * (spread[left].clamp_min(1e-12) * spread[right].clamp_min(1e-12)).rsqrt()


def _entries(codes: Codes, ids: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(row, place in ids, value) of the active codes of some latents on the counted rows."""
    if codes.latents is None:
        values = codes.values[:, ids]
        row, which = ((values > 0) & counted[:, None]).nonzero(as_tuple=True)
        return row, which, values[row, which]
    place = torch.full((codes.n_latents,), -1, device=ids.device)
    place[ids] = torch.arange(len(ids), device=ids.device)
    which = place[codes.latents]
    row, slot = ((which >= 0) & (codes.values > 0) & counted[:, None]).nonzero(as_tuple=True)
    return row, which[row, slot], codes.values[row, slot]
