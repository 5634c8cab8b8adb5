"""L1-regularised logistic regression of one label after another on sparse codes, solved to a duality gap.

Per label: minimise P(w, b) = Σ_i c_i·log(1 + exp(−s_i (x_i·w + b))) + λ Σ_j |w_j|, with s_i = ±1 the label and c_i the
class-balanced weights of the rows. The bias is not penalised.

Proximal Newton steps with coordinate descent on a working set (Friedman, Hastie & Tibshirani 2010; Yuan, Ho & Lin 2012:
newGLMNET). The dual point made from the residuals gives a lower bound of the minimum, so the solver knows how far it is
from the optimum, and it stops for that reason alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .dense import class_weights
from .kernels import best_bias, dual, gradient_of, losses, newton

Doubles = NDArray[np.float64]

GAP = 1e-9
"""Relative duality gap at which a fit is solved."""

MAX_ROUNDS = 200
"""Working sets before the solver gives up; five to fifteen are usual."""


class _Columns(NamedTuple):
    """Codes by latent: the entries of latent j are rows[indptr[j]:indptr[j + 1]] and data[…]."""

    indptr: NDArray[np.int64]
    rows: NDArray[np.int64]
    data: Doubles


class L1Fit(NamedTuple):
    """L1-regularised one-vs-rest probes.

    Attributes:
        weights: [P, F]; most are exactly 0.
        intercepts: [P].
        gaps: [P] relative duality gap: (loss − lower bound of the minimum) / loss.
    """

    weights: Doubles
    intercepts: Doubles
    gaps: Doubles


def fit_l1(
    codes: sparse.csr_array,
    values: NDArray[np.int8],
    names: tuple[str, ...],
    *,
    l1: float = 0.01,
    gap: float = GAP,
) -> L1Fit:
    """L1-regularised one-vs-rest logistic regression on all latents.

    Args:
        codes: [n, F].
        values: [n, P] labels, −1 for unknown.
        names: [P] labels, for errors.
        l1: penalty λ, relative to the scale of the codes; SAEBench uses 0.01.
        gap: relative duality gap to reach.

    Raises:
        ValueError: a label has no positive or no negative row.
    """
    weights = class_weights(values, names)
    by_latent = sparse.csc_array(codes.astype(np.float64))
    by_latent.sort_indices()
    x = _Columns(by_latent.indptr.astype(np.int64), by_latent.indices.astype(np.int64), by_latent.data)
    n_labels, n_latents = len(names), by_latent.shape[1]
    fit = L1Fit(np.zeros((n_labels, n_latents)), np.zeros(n_labels), np.zeros(n_labels))
    for i in range(n_labels):
        sign = np.where(values[:, i] == 1, 1.0, -1.0)
        weight = np.ascontiguousarray(weights[:, i], np.float64)
        fit.intercepts[i], fit.gaps[i] = _solve(x, weight, sign, l1, gap, fit.weights[i])
    return fit


def _solve(x: _Columns, weight: Doubles, sign: Doubles, l1: float, tolerance: float, w: Doubles) -> tuple[float, float]:
    """Minimise P for one label; w [F] begins as the starting point and ends as the solution.

    Returns:
        (bias, relative duality gap).
    """
    logits, slope, curve = (np.zeros(len(weight)) for _ in range(3))
    gradient = np.zeros(len(w))
    for j in np.flatnonzero(w):
        entries = slice(x.indptr[j], x.indptr[j + 1])
        logits[x.rows[entries]] += x.data[entries] * w[j]
    bias, gap, stalled = 0.0, np.inf, 0
    for _ in range(MAX_ROUNDS):
        bias += best_bias(weight, sign, logits, slope, curve)
        loss = losses(weight, sign, logits, slope, curve)
        gradient_of(x.indptr, x.rows, x.data, slope, gradient)
        value = loss + l1 * np.abs(w).sum()
        # The residuals, scaled until no latent's gradient exceeds l1, are feasible in the dual: its value bounds the
        # minimum from below.
        scale = min(1.0, l1 / max(float(np.abs(gradient).max()), 1e-300))
        before, gap = gap, (value - dual(weight, slope, scale)) / max(value, 1e-300)
        # Rounding: at about 1e-13 of the loss no step gains any more.
        stalled = stalled + 1 if gap >= 0.9 * before else 0
        if gap <= tolerance or stalled >= 5:
            break
        # The working set: every latent in use, and of the others those that violate the optimality condition
        # |gradient| ≤ l1 most, about as many again.
        used = np.flatnonzero(w)
        excess = np.where(w == 0, np.abs(gradient) - l1, 0.0)
        size = min(int((excess > 0).sum()), max(50, len(used)))
        worst = np.argpartition(-excess, size)[:size] if size < len(w) else np.arange(len(w))
        working = np.union1d(used, worst).astype(np.int64)
        residual = np.where(w == 0, np.maximum(np.abs(gradient) - l1, 0.0), np.abs(gradient + l1 * np.sign(w)))
        # Newton steps until the working set meets its own condition ten times better than the whole did.
        bias += newton(
            x.indptr, x.rows, x.data, weight, sign, working, w, l1, 0.1 * float(residual.max()), logits, slope, curve
        )
    return bias, float(gap)
