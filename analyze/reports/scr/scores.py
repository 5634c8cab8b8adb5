"""Spurious correlation removal from mean activations and mean codes.

Karvonen et al. 2024 (arXiv 2411.18895, after Marks et al. 2024) and SAEBench's evals/scr_and_tpp. A probe learns from
documents in which two labels always agree, so it confuses them. The latents with the largest effects on a probe of one
label (|difference of their mean codes| times |what the probe says of their decoder rows|) are set to 0. The score is
how far the confused probe's accuracy on the other label then rises towards that of a probe of this label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ...probes.texts import Ablation, strongest
from .combinations import BOTH, FIRST, SECOND

Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]
Labels = NDArray[np.int8]

LEAST_GAP = 0.001
"""A gap between the confused probe and the label's own below this leaves nothing to remove, and the score is 0."""


@dataclass(frozen=True)
class Direction:
    """One label kept, the other one removed.

    Attributes:
        confused: accuracy on the kept label of the probe that confuses both.
        clean: accuracy of a probe of the kept label.
        after: n → accuracy of the confused probe with the other label's n strongest latents at 0.
        latents: those latents, strongest first.
    """

    confused: float
    clean: float
    after: dict[int, float]
    latents: Ids

    def score(self, n: int) -> float:
        """Share of the gap between both probes that is closed; 1: all of it."""
        gap = self.clean - self.confused
        return 0.0 if gap < LEAST_GAP else (self.after[n] - self.confused) / gap


@dataclass(frozen=True)
class Removed:
    """Both directions of a pair: the first label kept, and the second."""

    keep_first: Direction
    keep_second: Direction

    @property
    def chosen(self) -> Direction:
        """The direction that counts: the one on whose label the confused probe is worse, the first of equal ones."""
        return self.keep_first if self.keep_first.confused <= self.keep_second.confused else self.keep_second


def effects_of(codes: sparse.csr_array, labels: Labels, pull: Doubles) -> Doubles:
    """Size of the effect of each latent on each probe [P, F].

    Args:
        codes: [D, F] mean codes of the documents that fit.
        labels: [D, P] 1, 0 or −1 for a document that is not in a probe's set.
        pull: [F, P] what a code of 1 adds to each probe's score.
    """
    transposed = sparse.csr_array(codes.T)
    yes, no = (transposed @ one / one.sum(axis=0) for one in ((labels == 1) * 1.0, (labels == 0) * 1.0))
    found: Doubles = np.abs((yes - no) * pull).T
    return found


def accuracy(scores: Doubles, labels: Labels) -> float:
    """Share of right answers (yes above 0) among the documents in the set; labels [D] as for :func:`effects_of`."""
    inside = labels >= 0
    return float(((scores[inside] > 0) == (labels[inside] == 1)).mean())


def remove(effects: Doubles, scored: Ablation, labels: Labels, ns: Sequence[int]) -> Removed:
    """Both directions.

    Args:
        effects: [3, F] on the probes FIRST, SECOND and BOTH.
        scored: the documents that score, with those probes.
        labels: [D, 3] of those documents.
        ns: numbers of latents.
    """

    def direction(kept: int, other: int) -> Direction:
        latents = strongest(effects[other], max(ns))
        after = {n: accuracy(scored.without(latents[:n])[:, BOTH], labels[:, kept]) for n in ns}
        confused, clean = (accuracy(scored.clean[:, probe], labels[:, kept]) for probe in (BOTH, kept))
        return Direction(confused, clean, after, latents)

    return Removed(direction(FIRST, SECOND), direction(SECOND, FIRST))
