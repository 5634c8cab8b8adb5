"""How alike two sets of latents are: CKA and CCA of their activations, matching of their weights.

Rows are the same tokens in both sets. CKA and matching are float64; principal components take the dtype they are given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from shared.metrics import max_cosines

HUNGARIAN_MAX = 6144
"""Latents up to which the best matching is found exactly (O(F³)); beyond, mutual nearest neighbours are taken."""

EXACT_PCA = 2048
"""Latents up to which principal components are exact; beyond, the leading RANDOM_RANK ones by randomised SVD."""

RANDOM_RANK = 1024


def hsic(k: Tensor, other: Tensor) -> float:
    """Unbiased HSIC of two Gram matrices [n, n] of the same n ≥ 4 rows (Song et al. 2012, eq. 5)."""
    n = k.shape[0]
    k, other = k.clone().fill_diagonal_(0), other.clone().fill_diagonal_(0)
    a, b = k.sum(0), other.sum(0)
    cross = float((k * other).sum()) + float(a.sum() * b.sum()) / ((n - 1) * (n - 2)) - 2 * float(a @ b) / (n - 2)
    return cross / (n * (n - 3))


@dataclass(frozen=True)
class Grams:
    """Gram matrices [n, n] of the minibatches of one set of activations, and Σ HSIC of each with itself."""

    batches: list[Tensor]
    own: float

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> Grams:
        """Of minibatches [n, F]; float64 whatever they are."""
        grams = [gram.double() for gram in (x @ x.T for x in batches)]
        return cls(grams, sum(hsic(gram, gram) for gram in grams))


def cka(a: Grams, b: Grams) -> float | None:
    """Debiased linear CKA over the same minibatches of rows (Nguyen, Raghu & Kornblith 2021, eq. 3).

    mean HSIC(K, L) / √(mean HSIC(K, K) · mean HSIC(L, L)) with the unbiased estimator, which is about 0, not large, for
    unrelated features however many there are. None where a set does not vary.
    """
    cross = sum(hsic(k, other) for k, other in zip(a.batches, b.batches, strict=True))
    return cross / float(np.sqrt(a.own * b.own)) if a.own > 0 and b.own > 0 else None


@dataclass(frozen=True)
class Components:
    """Whitened principal components of one set of activations.

    Attributes:
        scores: [N, p] of unit variance, uncorrelated. weights: [p] variance of each component.
        kept: share of the variance that they hold.
    """

    scores: Tensor
    weights: Tensor
    kept: float


def principal_components(x: Tensor, share: float = 0.99, ridge: float = 1e-6) -> Components | None:
    """The fewest leading components [N, F] that hold `share` of the variance, whitened; None where nothing varies.

    Above EXACT_PCA columns only the leading RANDOM_RANK components are sought, so less than `share` may be kept.
    """
    x = x - x.mean(0)
    n = x.shape[0]
    total = float(x.square().sum()) / n
    if total <= 0:
        return None
    if x.shape[1] <= EXACT_PCA:
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    else:
        generator = torch.get_rng_state()
        torch.manual_seed(0)
        _, singular, vectors = torch.svd_lowrank(x, q=min(RANDOM_RANK, n), niter=2)
        torch.set_rng_state(generator)
        values = singular.square() / n
    held = values.cumsum(0) / total
    p = min(int((held < share).sum()) + 1, int((values > 1e-12 * values[0]).sum()))
    values, vectors = values[:p], vectors[:, :p]
    return Components(x @ vectors / (values + ridge * values[0]).sqrt(), values, float(held[p - 1]))


@dataclass(frozen=True)
class CCA:
    """Canonical correlations of two sets.

    Attributes:
        svcca: mean canonical correlation over the smaller set's components (Raghu et al. 2017).
        pwcca: the same weighted by how much of the first set each direction explains (Morcos et al. 2018).
        dims: components of the two sets. kept: the variance that they hold. rows: N.
    """

    svcca: float
    pwcca: float
    dims: tuple[int, int]
    kept: tuple[float, float]
    rows: int


def chance_cca(p: int, q: int, n: int) -> float:
    """Mean canonical correlation of independent sets of p and q components over n rows: what overfitting alone gives.

    The squared correlations follow Wachter's law (1980), with γ = p/n, η = q/n, p ≤ q, between
    (√(γ(1 − η)) ± √(η(1 − γ)))²; its density is √((λ₊ − λ)(λ − λ₋)) / (2πγ λ(1 − λ)). With p + q > n some are 1.
    """
    p, q = min(p, q), max(p, q)
    if p + q >= n:
        return 1.0
    gamma, eta = p / n, q / n
    low = (np.sqrt(gamma * (1 - eta)) - np.sqrt(eta * (1 - gamma))) ** 2
    high = (np.sqrt(gamma * (1 - eta)) + np.sqrt(eta * (1 - gamma))) ** 2
    # λ = middle + half·cos t turns both square-root ends into smooth ones.
    t = (np.arange(2000) + 0.5) / 2000 * np.pi
    squared = (high + low) / 2 + (high - low) / 2 * np.cos(t)
    density = ((high - low) / 2 * np.sin(t)) ** 2 / (squared * (1 - squared))
    return float((np.sqrt(squared) * density).sum() / density.sum())


def cca(a: Components, b: Components) -> CCA:
    """SVCCA and PWCCA of whitened components of the same N rows."""
    n = a.scores.shape[0]
    u, correlations, _ = torch.linalg.svd(a.scores.T @ b.scores / n, full_matrices=False)
    correlations = correlations.clamp(0, 1)
    # Canonical variates h = scores · u; the set itself is scores · √weights: |⟨h, x_j⟩| summed over its components j.
    alpha = (u * a.weights.sqrt()[:, None]).abs().sum(0)
    return CCA(
        float(correlations.mean()),
        float((alpha * correlations).sum() / alpha.sum()),
        (a.scores.shape[1], b.scores.shape[1]),
        (a.kept, b.kept),
        n,
    )


@dataclass(frozen=True)
class Matching:
    """Latents of one coder matched with those of another.

    Attributes:
        partner: [F_a] the partner by decoder, −1 where there is none. cosine: [F_a] of that pair's decoder rows.
        shared: [F_a] the same partner by encoder and by decoder, and decoder cosine ≥ the limit.
        mmcs: mean over the first coder's latents of the largest decoder cosine; mmcs_back: over the second's.
        exact: the best matching was found (Hungarian), else mutual nearest neighbours.
    """

    partner: NDArray[np.int64]
    cosine: NDArray[np.float64]
    shared: NDArray[np.bool_]
    mmcs: float
    mmcs_back: float
    exact: bool

    @property
    def share(self) -> float:
        """Shared latents among all of the first coder's."""
        return float(self.shared.mean())


def match(enc_a: Tensor, dec_a: Tensor, enc_b: Tensor, dec_b: Tensor, limit: float = 0.7) -> Matching:
    """Match latents by encoder and by decoder rows; shared = the same partner in both and decoder cosine ≥ limit.

    Args:
        enc_a, dec_a: [F_a, d_in], [F_a, d_out]; enc_b, dec_b: [F_b, d_in], [F_b, d_out].
    """
    unit = torch.nn.functional.normalize
    exact = max(len(dec_a), len(dec_b)) <= HUNGARIAN_MAX
    by_decoder, cosine = _partners(unit(dec_a.float(), dim=1), unit(dec_b.float(), dim=1), exact)
    by_encoder, _ = _partners(unit(enc_a.float(), dim=1), unit(enc_b.float(), dim=1), exact)
    shared = (by_decoder >= 0) & (by_decoder == by_encoder) & (cosine >= limit)
    return Matching(
        by_decoder,
        cosine,
        shared,
        float(max_cosines(dec_a, dec_b).mean()),
        float(max_cosines(dec_b, dec_a).mean()),
        exact,
    )


def _partners(a: Tensor, b: Tensor, exact: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(partner in b of each row of a or −1, their cosine) for unit rows."""
    partner = np.full(len(a), -1, np.int64)
    cosine = np.zeros(len(a))
    if exact:
        cos = (a @ b.T).numpy()
        rows, columns = linear_sum_assignment(cos, maximize=True)
        partner[rows] = columns
        cosine[rows] = cos[rows, columns]
        return partner, cosine
    best_a, index_a = _nearest(a, b)
    _, index_b = _nearest(b, a)
    mutual = index_b[index_a] == np.arange(len(a))
    partner[mutual], cosine[mutual] = index_a[mutual], best_a[mutual]
    return partner, cosine


def _nearest(a: Tensor, b: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    values, index = [], []
    for start in range(0, len(a), 2048):
        best = (a[start : start + 2048] @ b.T).max(dim=1)
        values.append(best.values.double().numpy())
        index.append(best.indices.numpy())
    return np.concatenate(values), np.concatenate(index)
