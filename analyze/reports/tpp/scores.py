"""Targeted probe perturbation from mean activations and mean codes: accuracies of probes, before and after.

Karvonen et al. 2024 (arXiv 2411.18895, after Marks et al. 2024) and SAEBench's evals/scr_and_tpp. Each class has a
linear probe. The effect of a latent on it is (how much stronger its mean code is on documents of the class, or 0)
times (what the probe says of its decoder row). The latents with the largest effects are set to 0; the score is how
much accuracy the class's own probe loses, less what the probes of the other classes lose on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ...probes.texts import Ablation, strongest

Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Perturbed:
    """C classes.

    Attributes:
        latents: of each class the latents with a positive effect, strongest first, at most the largest n.
        clean: [C] accuracy of each probe.
        after: n → [C, C] accuracy of probe j with the n strongest latents of class i at 0.
    """

    latents: tuple[Ids, ...]
    clean: Doubles
    after: dict[int, Doubles]

    def intended(self, n: int) -> Doubles:
        """What the probe of the class itself loses [C]."""
        found: Doubles = self.clean - np.diagonal(self.after[n])
        return found

    def unintended(self, n: int) -> Doubles:
        """What the probes of the other classes lose on average [C]."""
        lost = self.clean[None, :] - self.after[n]
        found: Doubles = (lost.sum(axis=1) - np.diagonal(lost)) / (len(lost) - 1)
        return found

    def score(self, n: int) -> Doubles:
        """The score of each class [C]."""
        found: Doubles = self.intended(n) - self.unintended(n)
        return found


def effects_of(codes: sparse.csr_array, of_class: Ids, pull: Doubles) -> Doubles:
    """The effect of each latent on each class's probe [C, F].

    Args:
        codes: [D, F] mean codes of the documents that fit; as many of each class.
        of_class: [D].
        pull: [F, C] what a code of 1 adds to each probe's score.
    """
    n_classes = pull.shape[1]
    member = (of_class[:, None] == np.arange(n_classes)).astype(np.float64)
    transposed = sparse.csr_array(codes.T)
    inside, outside = (transposed @ one / one.sum(axis=0) for one in (member, 1 - member))
    found: Doubles = (np.maximum(inside - outside, 0) * pull).T
    return found


def accuracies(scores: Doubles, of_class: Ids) -> Doubles:
    """Accuracy of each probe [C] where half of the documents are of its class and the others evenly of all others.

    SAEBench draws that many documents of the other classes; this is the mean over all draws.

    Args:
        scores: [D, C], accepted above 0.
        of_class: [D].
    """
    yes = np.stack([(scores[of_class == one] > 0).mean(axis=0) for one in range(scores.shape[1])])
    hits = np.diagonal(yes)
    false = (yes.sum(axis=0) - hits) / (len(yes) - 1)
    found: Doubles = (hits + 1 - false) / 2
    return found


def perturb(effects: Doubles, scored: Ablation, of_class: Ids, ns: Sequence[int]) -> Perturbed:
    """The accuracies before, and after each class's latents are set to 0.

    Args:
        effects: [C, F].
        scored: the documents that score.
        of_class: [D] of those documents.
        ns: numbers of latents.
    """
    latents = tuple(strongest(row, max(ns)) for row in effects)
    after = {n: np.stack([accuracies(scored.without(own[:n]), of_class) for own in latents]) for n in ns}
    return Perturbed(latents, accuracies(scored.clean, of_class), after)
