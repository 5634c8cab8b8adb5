"""k-sparse probes: the few latents that represent a label, and feature splitting.

Chanin et al. 2024 (arXiv 2409.14507) and SAEBench: rank latents by the positive weights of an L1-regularised probe,
fit a logistic regression on the first k of them for k = 1 … 10, and let k grow while that raises F1 by more than 0.03.
The latents of the last such k are the label's *main* latents; more than one of them is feature splitting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ...probes.few import Doubles, fit_few
from ...probes.l1 import fit_l1
from ...probes.labels import Labels
from ...probes.scores import Scores, best_threshold, f1, score
from ...probes.splits import ProbeSplit
from .config import F1_JUMP, MAX_K


@dataclass(frozen=True)
class KSparse:
    """The main latents of one label.

    Attributes:
        label: its name.
        ranked: latents with a positive L1 weight, largest first; at most max_k.
        f1_by_k: F1 of the probes on the first 1, 2, … latents (validation rows), up to the first k that does not pay.
        latents: the main latents: the first k of `ranked`.
        weight, bias: [k] and number, of their probe.
        scores: of that probe on the test rows; None where no latent has a positive weight.
    """

    label: str
    ranked: tuple[int, ...]
    f1_by_k: tuple[float, ...]
    latents: tuple[int, ...]
    weight: tuple[float, ...]
    bias: float
    scores: Scores | None


def choose_k(f1_by_k: tuple[float, ...] | list[float], jump: float = F1_JUMP) -> int:
    """Number of main latents: k grows from 1 while F1 rises by more than `jump`.

    Args:
        f1_by_k: F1 of the probe on the first 1, 2, … latents; empty: 0 main latents.
        jump: a gain in F1.
    """
    if not f1_by_k:
        return 0
    k = 1
    while k < len(f1_by_k) and f1_by_k[k] > f1_by_k[k - 1] + jump:
        k += 1
    return k


def code_unit(codes: sparse.csr_array) -> float:
    """The mean positive code; 1 if all codes are 0 (the decoder of an untrained transcoder is 0).

    Divided by it, the codes of all coders and sites have one scale, and the L1 penalty has one meaning.
    """
    active = codes.data[codes.data > 0]
    return float(active.mean()) if len(active) else 1.0


def k_sparse_probes(
    codes: sparse.csr_array,
    labels: Labels,
    split: ProbeSplit,
    *,
    l1: float = 0.01,
    max_k: int = MAX_K,
    jump: float = F1_JUMP,
) -> list[KSparse]:
    """The main latents of each label.

    Args:
        codes: [n, F] ≥ 0.
        labels: of the same rows; a row whose label is unknown takes no part in that label's probe.
        split: which rows fit, tune and score.
        l1: penalty on the codes divided by :func:`code_unit`. (SAEBench does not divide.)
        max_k, jump: limits of :func:`choose_k`.
    """
    scaled = sparse.csr_array(codes * (1 / code_unit(codes)))
    train = sparse.csr_array(scaled[split.train])
    weights, _, _ = fit_l1(train, labels.values[split.train], labels.names, l1=l1)
    results = []
    for i, name in enumerate(labels.names):
        order = np.argsort(-weights[i], kind="stable")[:max_k]
        ranked = order[weights[i, order] > 0]
        results.append(_fit_label(name, scaled, labels.values[:, i], split=split, ranked=ranked, jump=jump))
    return results


def _fit_label(
    name: str,
    codes: sparse.csr_array,
    values: NDArray[np.int8],
    *,
    split: ProbeSplit,
    ranked: NDArray[np.int64],
    jump: float,
) -> KSparse:
    """The main latents of one label, from the candidates `ranked`: one probe for each k, then :func:`choose_k`."""
    if not len(ranked):
        return KSparse(label=name, ranked=(), f1_by_k=(), latents=(), weight=(), bias=0.0, scores=None)
    columns = codes[:, ranked].toarray().astype(np.float64)

    def known(part: NDArray[np.int64]) -> NDArray[np.int64]:
        return part[values[part] >= 0]

    train, validation, test = known(split.train), known(split.validation), known(split.test)
    truth = values == 1
    fits: list[tuple[Doubles, float]] = []
    cuts: list[float] = []
    f1_by_k: list[float] = []
    # A larger k than the first that does not pay changes nothing (choose_k).
    while len(fits) < len(ranked) and choose_k(f1_by_k, jump) == len(fits):
        k = len(fits) + 1
        start = np.array([*fits[-1][0], 0.0, fits[-1][1]]) if fits else None
        weight, bias = fit_few(columns[train, :k], truth[train], start=start)
        scores = columns[validation, :k] @ weight + bias
        # A row on which none of the latents fires scores the bias. The floor keeps it a no: otherwise the best F1 of a
        # common label is that of saying yes to every row, and k stops at one meaningless latent.
        cut = best_threshold(truth[validation], scores, floor=bias)
        fits.append((weight, bias))
        cuts.append(cut)
        f1_by_k.append(f1(truth[validation], scores, cut))
    k = choose_k(f1_by_k, jump)
    weight, bias = fits[k - 1]
    return KSparse(
        label=name,
        ranked=tuple(ranked.tolist()),
        f1_by_k=tuple(f1_by_k),
        latents=tuple(ranked[:k].tolist()),
        weight=tuple(weight.tolist()),
        bias=bias,
        scores=score(truth[test], columns[test, :k] @ weight + bias, cuts[k - 1]),
    )
