"""Tracked pairs: a hinge on the pairs of latents that stay correlated over many batches, and on no others.

This project's own definition. Within one batch, r of two rare latents is mostly noise, and a hinge on every pair
punishes pairs that are no duplicates. Here a window of batches nominates the pairs, and their excess is the window's.
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
    weight: float = 100.0
    threshold: float = 0.7
    """τ: |r| up to it is free; a little under the r that is reported as a duplicate."""
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
        if min(self.period, self.window, self.min_both) < 1 or self.start < 0 or self.min_fired < 2:
            raise ValueError("period, window and min_both must be at least 1, start at least 0, min_fired at least 2")
        if self.every != 1:
            raise ValueError("every: tracked_pairs looks at every step; raise period instead")


class TrackedPairs(Penalty):
    """(1/F) Σ_p relu(|r_p| − τ)² over the nominated pairs, r_p from the window they were nominated in.

    With z̃ = (z − mean)/std, all of the window, the gradient of r_ij with respect to z_ti is
    (z̃_tj − r_ij z̃_ti)/(N std_i). Each step applies it to its own N rows (without position 0): a sample of the gradient
    of the window's hinge, at the cost of a gather of a few columns. The value is constant between nominations.
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
        rest = batch.rest
        p = self._pairs
        z = (codes.columns(p["ids"]).T - p["mean"].unsqueeze(1)) / p["std"].unsqueeze(1) * rest
        left, right, r = z[p["left"]], z[p["right"]], p["r"]
        excess = (r.abs() - c.threshold).relu()
        sample = (left * right).sum(dim=1) - r / 2 * (left.square() + right.square()).sum(dim=1)
        slope = (2 * excess * r.sign() * sample).sum() / rest.sum().clamp_min(1) / codes.n_latents
        return excess.square().sum() / codes.n_latents + (slope - slope.detach())

    def _nominate(self, like: Tensor) -> None:
        """Pairs above the threshold over the window, which is then forgotten."""
        c = self.config
        scan = scan_pairs(self._window.rows(), c.threshold, c.min_fired, c.min_both)
        self._window.clear()
        ids, place = np.unique(np.concatenate([scan.i, scan.j]), return_inverse=True)
        self._pairs = {}
        if len(ids):
            left, right = place[: len(scan.i)], place[len(scan.i) :]
            floats = {"mean": scan.moments.mean[ids], "std": scan.moments.std[ids], "r": scan.r}
            self._pairs = {name: torch.from_numpy(value).to(like) for name, value in floats.items()}
            integers = {"ids": ids, "left": left, "right": right}
            self._pairs |= {name: torch.from_numpy(value).to(like.device) for name, value in integers.items()}

    def metrics(self) -> dict[str, float]:
        """How many pairs are tracked, in how many latents, and the largest r of them."""
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
