"""Sparse probing: how well do k latents predict a label, compared with a dense probe of the activations?

Gurnee et al. 2023 (arXiv 2305.01610), with SAEBench's choice of latents: the k whose mean differs most between the
label's positive and negative training rows. One logistic regression per label and k; figures on held-out rows. The
dense probe is the upper reference; in a report, an untrained coder is the lower one (a random dictionary of this size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ...probes.dense import LinearProbes
from ...probes.few import fit_few
from ...probes.labels import Labels, family_of
from ...probes.scores import Scores, best_threshold, score
from ...probes.splits import ProbeSplit
from .config import KS


@dataclass(frozen=True)
class SparseProbe:
    """One label: the best latents and the scores of their first k.

    Attributes:
        label: its name.
        latents: largest |difference of means| first.
        scores: k → scores on the test rows.
        dense: scores of the dense probe on the same rows.
    """

    label: str
    latents: tuple[int, ...]
    scores: dict[int, Scores]
    dense: Scores

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "label": self.label,
            "latents": list(self.latents),
            "k": {str(k): value.to_dict() for k, value in self.scores.items()},
            "dense": self.dense.to_dict(),
        }


def mean_differences(codes: sparse.csr_array, values: NDArray[np.int8]) -> NDArray[np.float64]:
    """Mean of each latent over a label's positive rows less the mean over its negative rows: [P, F].

    Args:
        codes: [n, F].
        values: [n, P] labels, −1 for unknown.
    """
    positive = (values == 1).astype(np.float64)
    negative = (values == 0).astype(np.float64)
    transposed = sparse.csr_array(codes.T.astype(np.float64))
    sums_positive, sums_negative = transposed @ positive, transposed @ negative
    difference: NDArray[np.float64] = sums_positive / np.maximum(positive.sum(0), 1) - sums_negative / np.maximum(
        negative.sum(0), 1
    )
    return difference.T


def sparse_probes(
    codes: sparse.csr_array,
    labels: Labels,
    split: ProbeSplit,
    probes: LinearProbes,
    ks: Sequence[int] = KS,
) -> list[SparseProbe]:
    """Sparse probes of every label.

    Args:
        codes: [n, F].
        labels: of the same rows.
        split: which rows fit, tune and score.
        probes: the dense probes of the same labels and split.
        ks: numbers of latents.
    """
    largest = min(max(ks), codes.shape[1])
    differences = mean_differences(sparse.csr_array(codes[split.train]), labels.values[split.train])
    results = []
    for i, name in enumerate(labels.names):
        values = labels.values[:, i]
        truth = values == 1
        chosen = np.argsort(-np.abs(differences[i]), kind="stable")[:largest]
        columns = codes[:, chosen].toarray().astype(np.float64)
        train, validation, test = (part[values[part] >= 0] for part in (split.train, split.validation, split.test))
        scores = {}
        for k in ks:
            weight, bias = fit_few(columns[train, :k], truth[train])
            tuning = columns[validation, :k] @ weight + bias
            cut = best_threshold(truth[validation], tuning)
            scores[k] = score(truth[test], columns[test, :k] @ weight + bias, cut)
        results.append(SparseProbe(name, tuple(chosen.tolist()), scores, probes.scores[i]))
    return results


def family_means(probes: Sequence[SparseProbe], measure: str = "auc") -> dict[str, dict[str, float]]:
    """Family → "dense" or k as text → mean of a measure (a field of Scores) over the family's labels."""
    means = {}
    for family in dict.fromkeys(family_of(probe.label) for probe in probes):
        inside = [probe for probe in probes if family_of(probe.label) == family]
        means[family] = {
            "dense": float(np.mean([getattr(probe.dense, measure) for probe in inside])),
            **{
                str(k): float(np.mean([getattr(probe.scores[k], measure) for probe in inside]))
                for k in inside[0].scores
            },
        }
    return means
