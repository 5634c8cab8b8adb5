"""Logistic regression on a few latents: k-sparse probes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def fit_few(
    x: Doubles, truth: NDArray[np.bool_], l2: float = 1.0, steps: int = 100, start: Doubles | None = None
) -> tuple[Doubles, float]:
    """Class-balanced logistic regression on a few columns, by damped Newton steps.

    Minimises Σ_i c_i·BCE(x_i·w + b, y_i) + ½ l2 ‖w‖² with c_i = n/(2 n_class). That is scikit-learn's
    LogisticRegression with class_weight "balanced" and C = 1/l2, with which SAEBench fits its k-sparse probes.

    Args:
        x: [n, k] codes of k latents.
        truth: [n] whether the label holds.
        steps: maximum number of Newton steps.
        start: [k + 1] weights and bias to begin with; None: zeros. The minimum is the same.

    Returns:
        (w [k], b).

    Raises:
        ValueError: all rows are of one class.
    """
    n_rows, positives = len(truth), int(truth.sum())
    if not 0 < positives < n_rows:
        raise ValueError(f"logistic regression needs both classes, found {positives} positive of {n_rows} rows")
    design, answer, weight = _silent_rows_joined(x, truth)
    ridge = np.append(np.full(x.shape[1], l2), 0.0)
    theta = np.zeros(design.shape[1]) if start is None else start.copy()

    def loss(at: Doubles) -> float:
        logits = design @ at
        return float((weight * (np.logaddexp(0, logits) - answer * logits)).sum() + 0.5 * (ridge * at * at).sum())

    # Each step lowers the loss: the line search halves the Newton step until it gains enough (Armijo). So the fit
    # converges from anywhere, also where the classes are separable and plain Newton steps would overshoot.
    current = loss(theta)
    for _ in range(steps):
        probability = 1 / (1 + np.exp(-np.clip(design @ theta, -500, 500)))
        gradient = design.T @ (weight * (probability - answer)) + ridge * theta
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


def _silent_rows_joined(x: Doubles, truth: NDArray[np.bool_]) -> tuple[Doubles, Doubles, Doubles]:
    """The design [m, k + 1] with a column of ones, answers [m] and class-balanced weights [m].

    Codes are sparse: on most rows none of the k latents fires, and these rows differ in their answer only. They become
    two rows with the weight of all, which leaves the objective as it is.
    """
    n_rows, positives = len(truth), int(truth.sum())
    weight = np.where(truth, n_rows / (2 * positives), n_rows / (2 * (n_rows - positives)))
    fires = x.any(1)
    silent = [weight[~fires & (truth == answer)].sum() for answer in (True, False)]
    columns = np.concatenate([x[fires].astype(np.float64), np.zeros((2, x.shape[1]))])
    design = np.column_stack([columns, np.ones(len(columns))])
    return design, np.append(truth[fires], [1.0, 0.0]).astype(np.float64), np.append(weight[fires], silent)
