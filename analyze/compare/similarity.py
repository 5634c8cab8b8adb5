"""How alike two sets of latents are: CKA and CCA of their activations, matching of their weights.

Rows are the same tokens in both sets. Codes stay sparse: what costs N·F² of dense algebra costs N·k² here. CKA and
matching are float64; principal components take the dtype they are given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...shared.memory import rows_within

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    Codes = csr_matrix[np.floating]

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
    def of(cls, batches: Iterable[Codes]) -> Grams:
        """Of minibatches [n, F]; float64 whatever they are."""
        grams = [torch.from_numpy((x @ x.T).toarray()) for x in (batch.astype(np.float64) for batch in batches)]
        return cls(grams, sum(hsic(gram, gram) for gram in grams))


def cka(a: Grams, b: Grams) -> float | None:
    """Debiased linear CKA over the same minibatches of rows (Nguyen, Raghu & Kornblith 2021, eq. 3).

    mean HSIC(K, L) / √(mean HSIC(K, K) · mean HSIC(L, L)) with the unbiased estimator, which is about 0, not large, for
    unrelated features however many there are. None where a set does not vary.
    """
    cross = sum(hsic(k, other) for k, other in zip(a.batches, b.batches, strict=True))
    return cross / float(np.sqrt(a.own * b.own)) if a.own > 0 and b.own > 0 else None


@dataclass(frozen=True)
class Centred:
    """A sparse matrix [N, F] less the mean [F] of its rows: products with it, without forming it."""

    codes: Codes
    mean: Tensor

    def __matmul__(self, right: Tensor) -> Tensor:
        """[N, F] times [F, p]."""
        return torch.from_numpy(self.codes @ right.numpy()) - self.mean @ right

    def transposed(self, right: Tensor) -> Tensor:
        """[F, N] times [N, p]."""
        return torch.from_numpy(self.codes.T @ right.numpy()) - torch.outer(self.mean, right.sum(0))


@dataclass(frozen=True)
class Components:
    """Whitened principal components of one set of activations.

    Attributes:
        rows: the activations [N, F] less their mean. basis: [F, p]; rows · basis are the components, of unit variance
            and uncorrelated. weights: [p] variance of each component before it was whitened.
        kept: share of the variance that they hold.
    """

    rows: Centred
    basis: Tensor
    weights: Tensor
    kept: float

    @property
    def scores(self) -> Tensor:
        """The components of the rows [N, p]."""
        return self.rows @ self.basis


def principal_components(codes: Codes, share: float = 0.99, ridge: float = 1e-6) -> Components | None:
    """The fewest leading components of [N, F] that hold `share` of the variance, whitened; None where nothing varies.

    Above EXACT_PCA columns only the leading RANDOM_RANK components are sought, so less than `share` may be kept.
    """
    n, wide = codes.shape[0], codes.astype(np.float64)
    mean = np.asarray(wide.mean(axis=0)).reshape(-1)
    total = float(wide.multiply(wide).sum()) / n - float(mean @ mean)
    if total <= 1e-12 * float(mean @ mean):
        return None
    centred = Centred(codes, torch.from_numpy(mean).to(torch.from_numpy(codes.data).dtype))
    if codes.shape[1] <= EXACT_PCA:
        covariance = torch.from_numpy((wide.T @ wide).toarray() / n - np.outer(mean, mean))
        values, vectors = torch.linalg.eigh(covariance.to(centred.mean.dtype))
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    else:
        values, vectors = leading(centred, min(RANDOM_RANK, n))
    held = values.cumsum(0) / total
    p = min(int((held < share).sum()) + 1, int((values > 1e-12 * values[0]).sum()))
    values, vectors = values[:p], vectors[:, :p]
    return Components(centred, vectors / (values + ridge * values[0]).sqrt(), values, float(held[p - 1]))


def leading(x: Centred, rank: int, rounds: int = 2) -> tuple[Tensor, Tensor]:
    """The `rank` largest eigenvalues of the covariance and their vectors [F, rank], by randomised subspace iteration.

    Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1.
    """
    n, width = x.codes.shape
    start = np.random.default_rng(0).standard_normal((width, min(rank, width)))
    basis = torch.linalg.qr(x @ torch.from_numpy(start).to(x.mean.dtype)).Q
    for _ in range(rounds):
        basis = torch.linalg.qr(x @ torch.linalg.qr(x.transposed(basis)).Q).Q
    vectors, singular, _ = torch.linalg.svd(x.transposed(basis), full_matrices=False)
    return singular.square() / n, vectors


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
    n = a.rows.codes.shape[0]
    # Of the components' scores, [N, p] each: the product of the codes themselves would be [F_a, F_b].
    u, correlations, _ = torch.linalg.svd(a.scores.T @ b.scores / n, full_matrices=False)
    correlations = correlations.clamp(0, 1)
    # Canonical variates h = scores · u; the set itself is scores · √weights: |⟨h, x_j⟩| summed over its components j.
    alpha = (u * a.weights.sqrt()[:, None]).abs().sum(0)
    return CCA(
        float(correlations.mean()),
        float((alpha * correlations).sum() / alpha.sum()),
        (a.basis.shape[1], b.basis.shape[1]),
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
    for part in torch.split(a, rows_within(4 * len(b), 2048)):
        best = (part @ b.T).max(dim=1)
        values.append(best.values.double().numpy())
        index.append(best.indices.numpy())
    return np.concatenate(values), np.concatenate(index)


def max_cosines(a: Tensor, b: Tensor, chunk: int = 4096) -> Tensor:
    """Largest cosine of each row of a [m, d] with a row of b [n, d]: [m] float64.

    Args:
        chunk: rows of a compared at a time, fewer where n is large.
    """
    chunk = rows_within(8 * len(b), chunk)
    a, b = (torch.nn.functional.normalize(side.to(torch.float64), dim=1) for side in (a, b))
    return torch.cat([(a[start : start + chunk] @ b.T).amax(dim=1) for start in range(0, a.shape[0], chunk)])
