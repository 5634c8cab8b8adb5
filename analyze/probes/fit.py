"""Linear probes: can a label be read from a direction, or from a few latents?

Three fits. All are convex, so no result depends on the order of batches or on a learning rate:

- :func:`train_probes`    dense, one per label, on activations; L-BFGS; the reference for absorption and sparse probing
- :func:`fit_few`         logistic regression on a few latents; Newton's method
- :func:`fit_l1`          L1-regularised logistic regression on all latents, to rank them; FISTA

Both classes carry the same total weight: a positive row counts n_negative/n_positive times (SAEBench's `pos_weight`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from .labels import Labels
from .scores import Scores, best_threshold, score
from .splits import ProbeSplit

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class LinearProbes:
    """P one-vs-rest probes of raw activations: score = x·weight + bias, "yes" above the threshold.

    Attributes:
        names: [P] labels.
        weight: [P, d] float32.
        bias, threshold: [P] float64.
        scores: [P] on the test rows.
    """

    names: tuple[str, ...]
    weight: Floats
    bias: Doubles
    threshold: Doubles
    scores: tuple[Scores, ...]

    @property
    def directions(self) -> Floats:
        """[P, d] unit rows."""
        norms = np.linalg.norm(self.weight, axis=1, keepdims=True)
        unit: Floats = self.weight / np.maximum(norms, np.finfo(np.float32).tiny)
        return unit

    def predict(self, x: Tensor) -> Doubles:
        """Scores [n, P] of raw activations [n, d]."""
        return _predict(x, self.weight, self.bias)

    def positive(self, x: Tensor) -> NDArray[np.bool_]:
        """[n, P] whether each probe says yes."""
        return self.predict(x) > self.threshold


def train_probes(
    x: Tensor,
    labels: Labels,
    split: ProbeSplit,
    *,
    l2: float = 1e-3,
    max_steps: int = 200,
) -> LinearProbes:
    """One linear probe per label, by L-BFGS on the class-balanced cross-entropy of the training rows.

    Each dimension is standardised on the training rows first (a residual stream has dimensions a hundred times larger
    than the rest). The result is folded back: weights and biases apply to raw x. Thresholds have the largest F1 on the
    validation rows: class weights make 0 far too generous for a rare label.

    Args:
        x: [n, d] activations, any float dtype.
        labels: of the same rows; a row whose label is unknown takes no part in that label's probe.
        l2: weight of ½‖w‖² on the standardised scale.
        max_steps: maximum number of L-BFGS iterations.

    Raises:
        ValueError: a label has no positive or no negative training row.
    """
    train = x[torch.from_numpy(split.train)].to(torch.float32)
    mean = train.mean(dim=0)
    std = train.std(dim=0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    train = (train - mean) / std
    weights = torch.from_numpy(class_weights(labels.values[split.train], labels.names))
    target = torch.from_numpy((labels.values[split.train] == 1).astype(np.float32))
    w, b = _lbfgs(train, target, weights, l2, max_steps)
    # Standardised score: w·(x − mean)/std + b = (w/std)·x + (b − (w/std)·mean). The bias in float64, because it is a
    # difference of large numbers where the mean of a dimension is large.
    w = w / std
    weight = w.numpy()
    bias = (b.double() - w.double() @ mean.double()).numpy()
    thresholds = np.zeros(len(labels.names))
    results = []
    held_out = _predict(x[torch.from_numpy(split.test)], weight, bias)
    tuning = _predict(x[torch.from_numpy(split.validation)], weight, bias)
    for i in range(len(labels.names)):
        known = labels.values[split.validation, i] >= 0
        thresholds[i] = best_threshold(labels.values[split.validation, i][known] == 1, tuning[known, i])
        known = labels.values[split.test, i] >= 0
        results.append(score(labels.values[split.test, i][known] == 1, held_out[known, i], thresholds[i]))
    return LinearProbes(labels.names, weight, bias, thresholds, tuple(results))


def class_weights(values: NDArray[np.int8], names: tuple[str, ...]) -> Floats:
    """Weight of each row in each label's loss [n, P].

    n_negative/n_positive for a positive row, 1 for a negative, 0 for an unknown; all divided by the number of known
    rows, so that the loss is a mean over rows.

    Args:
        values: [n, P] labels: 1, 0, −1 for unknown.
        names: [P] labels, for the error.

    Raises:
        ValueError: a label has no positive or no negative row.
    """
    positive, negative = (values == 1).sum(0), (values == 0).sum(0)
    for name, n_positive, n_negative in zip(names, positive, negative, strict=True):
        if not n_positive or not n_negative:
            raise ValueError(
                f"label {name!r} has {n_positive} positive and {n_negative} negative training rows; a probe needs both"
            )
    weight = np.where(values == 1, negative / positive, np.where(values == 0, 1.0, 0.0)) / (positive + negative)
    balanced: Floats = weight.astype(np.float32)
    return balanced


def _predict(x: Tensor, weight: Floats, bias: Doubles, chunk: int = 65_536) -> Doubles:
    w = torch.from_numpy(weight).T
    parts = [(x[start : start + chunk].to(torch.float32) @ w).double().numpy() for start in range(0, len(x), chunk)]
    scores = np.concatenate(parts) if parts else np.zeros((0, len(bias)))
    return scores + bias


def _lbfgs(x: Tensor, target: Tensor, weights: Tensor, l2: float, max_steps: int) -> tuple[Tensor, Tensor]:
    """Minimise Σ_rows weights·BCE(x wᵀ + b, target) + ½ l2 ‖w‖² for all labels at once.

    The objective is a sum over labels without shared parameters, so its minimum is that of each label alone: one
    L-BFGS run replaces P of them.
    """
    w = torch.zeros(target.shape[1], x.shape[1], requires_grad=True)
    b = torch.zeros(target.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [w, b], max_iter=max_steps, history_size=20, tolerance_grad=1e-5, tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = torch.addmm(b, x, w.T)
        # softplus(z) − y·z is the cross-entropy, stable for large |z|.
        loss: Tensor = (weights * (torch.nn.functional.softplus(logits) - target * logits)).sum()
        loss = loss + 0.5 * l2 * w.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call, unused-ignore]
    return w.detach(), b.detach()


def fit_few(x: Doubles, truth: NDArray[np.bool_], l2: float = 1.0, steps: int = 50) -> tuple[Doubles, float]:
    """Class-balanced logistic regression on a few columns, by damped Newton steps.

    Minimises Σ_i c_i·BCE(x_i·w + b, y_i) + ½ l2 ‖w‖² with c_i = n/(2 n_class). That is scikit-learn's
    LogisticRegression with class_weight "balanced" and C = 1/l2, with which SAEBench fits its k-sparse probes.

    Args:
        x: [n, k] codes of k latents.
        truth: [n] whether the label holds.
        steps: maximum number of Newton steps.

    Returns:
        (w [k], b).

    Raises:
        ValueError: all rows are of one class.
    """
    n_rows, positives = len(truth), int(truth.sum())
    if not 0 < positives < n_rows:
        raise ValueError(f"logistic regression needs both classes, found {positives} positive of {n_rows} rows")
    weight = np.where(truth, n_rows / (2 * positives), n_rows / (2 * (n_rows - positives)))
    design = np.column_stack([x.astype(np.float64), np.ones(n_rows)])
    ridge = np.append(np.full(x.shape[1], l2), 0.0)
    theta = np.zeros(design.shape[1])

    def loss(at: Doubles) -> float:
        logits = design @ at
        return float((weight * (np.logaddexp(0, logits) - truth * logits)).sum() + 0.5 * (ridge * at * at).sum())

    # Each step lowers the loss: the line search halves the Newton step until it gains enough (Armijo). So the fit
    # converges from 0 also where the classes are separable and plain Newton steps would overshoot.
    current = loss(theta)
    for _ in range(steps):
        probability = 1 / (1 + np.exp(-np.clip(design @ theta, -500, 500)))
        gradient = design.T @ (weight * (probability - truth)) + ridge * theta
        if np.abs(gradient).max() < 1e-8 * n_rows:
            break
        curvature = weight * probability * (1 - probability)
        # The bias has no ridge, so a saturated fit has a singular Hessian: 1e-10 n on the diagonal keeps it regular.
        hessian = (design * curvature[:, None]).T @ design + np.diag(ridge + 1e-10 * n_rows)
        step = np.linalg.solve(hessian, gradient)
        rate, slope = 1.0, float(gradient @ step)
        while (following := loss(theta - rate * step)) > current - 1e-4 * rate * slope and rate > 1e-8:
            rate /= 2
        theta = theta - rate * step
        if current - following < 1e-12 * max(1.0, abs(current)):
            break
        current = following
    return theta[:-1], float(theta[-1])


def fit_l1(
    codes: sparse.csr_array,
    values: NDArray[np.int8],
    names: tuple[str, ...],
    *,
    l1: float = 0.01,
    max_steps: int = 300,
    tolerance: float = 1e-3,
) -> tuple[Floats, Floats]:
    """L1-regularised one-vs-rest logistic regression on all latents, by FISTA with restarts (Beck & Teboulle 2009).

    Minimises, for each label, the class-balanced mean cross-entropy + l1 Σ|w|. The intercept is not penalised. Most
    weights end at exactly 0.

    Args:
        codes: [n, F].
        values: [n, P] labels, −1 for unknown.
        names: [P] labels, for errors.
        l1: penalty, relative to the scale of the codes; SAEBench uses 0.01.
        max_steps: maximum number of FISTA steps.
        tolerance: stop when no weight moves by more than a tenth of this share of the largest weight.

    Returns:
        (weights [P, F], intercepts [P]).
    """
    weights = class_weights(values, names)
    truth = (values == 1).astype(np.float32)
    matrix = sparse.csr_array(codes.astype(np.float32))
    transposed = sparse.csr_array(matrix.T)
    rate = 1 / _curvature(matrix, transposed, weights)
    n_latents, n_labels = matrix.shape[1], len(names)
    w = np.zeros((n_latents, n_labels), np.float32)
    b = np.zeros(n_labels, np.float32)
    ahead_w, ahead_b, momentum = w, b, 1.0
    for step in range(max_steps):
        # A gradient step on the smooth part, taken at the extrapolated point …
        logits = matrix @ ahead_w + ahead_b
        slope = weights * (1 / (1 + np.exp(-np.clip(logits, -60, 60))) - truth)
        moved = ahead_w - rate * (transposed @ slope)
        # … then the proximal step of l1 Σ|w|: every weight moves towards 0 by rate·l1 and stops there.
        new_w = np.sign(moved) * np.maximum(np.abs(moved) - rate * l1, 0)
        new_b = ahead_b - rate * slope.sum(0)
        change_w, change_b = new_w - w, new_b - b
        # Restart where the momentum points uphill (O'Donoghue & Candès 2015): (ahead − new) has the direction of the
        # gradient, so a positive product with the last change means that this change goes against the descent. All
        # labels restart together, which costs steps but changes no minimum.
        if float(((ahead_w - new_w) * change_w).sum() + ((ahead_b - new_b) * change_b).sum()) > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        beta = (momentum - 1) / following
        ahead_w, ahead_b, momentum = new_w + beta * change_w, new_b + beta * change_b, following
        w, b = new_w, new_b
        if step > 10 and np.abs(change_w).max() <= tolerance * max(np.abs(w).max(), 1e-12) * 0.1:
            break
    return np.ascontiguousarray(w.T), b


def _curvature(matrix: sparse.csr_array, transposed: sparse.csr_array, weights: Floats, steps: int = 15) -> Floats:
    """An upper bound of each label's largest Hessian eigenvalue [P]: ¼ λ_max([X 1]ᵀ diag(weights) [X 1]).

    ¼ bounds the logistic curvature p(1 − p). Power iteration approaches λ_max from below, so a tenth is added. FISTA
    converges with any step of at most 1/λ_max.
    """
    rng = np.random.default_rng(0)
    v = np.abs(rng.standard_normal((matrix.shape[1] + 1, weights.shape[1]))).astype(np.float32)
    size = np.ones(weights.shape[1], np.float32)
    for _ in range(steps):
        v /= np.maximum(np.linalg.norm(v, axis=0), 1e-30)
        rows = weights * (matrix @ v[:-1] + v[-1])
        v = np.concatenate([transposed @ rows, rows.sum(0, keepdims=True)])
        size = np.linalg.norm(v, axis=0).astype(np.float32)
    bound: Floats = np.maximum(0.25 * 1.1 * size, 1e-12).astype(np.float32)
    return bound
