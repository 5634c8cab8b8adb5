"""L2-regularised logistic regression of many labels on the same rows, all labels in the same matrix products.

The objective is a sum over labels that share no parameter. Each label has its own L-BFGS history (Nocedal & Wright
2006, algorithm 7.4), step length and stopping rule; they share the two matrix products of an iteration, and the
spectrum of the rows: L-BFGS starts from the inverse of α·XᵀX/n + l2 (α the mean curvature), which is close to the
inverse Hessian. Without it, correlated dimensions (as in a residual stream) cost several times as many iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MEMORY = 12
"""Pairs of changes (of weights, of gradients) that a label remembers."""

MAX_STEPS = 500
"""Iterations before a label is left where it is; 30 to 80 are usual."""


class DenseFit(NamedTuple):
    """Solved probes.

    Attributes:
        weights: [P, d] float32.
        intercepts: [P] float32.
        gaps: [P] float64, upper bounds of (loss − minimum) / loss.
        steps: iterations of the slowest label.
    """

    weights: Tensor
    intercepts: Tensor
    gaps: Tensor
    steps: int


@dataclass
class _State:
    """Where the labels that are still at work are; rows of all tensors are labels.

    Attributes:
        label: [A] which labels these are.
        theta: [A, d + 1]; the last column is the bias.
        loss: [A] float64.
        gradient: [A, d + 1].
        curvature: [A] Σ weights·p(1 − p): the mean curvature of the rows.
        moves, changes: [A, m, d + 1] of theta and of the gradient, newest last.
        inverse: [A, m] 1/(move·change), 0 for a pair that does not count.
    """

    label: Tensor
    theta: Tensor
    loss: Tensor
    gradient: Tensor
    curvature: Tensor
    moves: Tensor
    changes: Tensor
    inverse: Tensor

    def of(self, which: Tensor) -> _State:
        """Only these labels."""
        return _State(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


class _Problem:
    """The objective: Σ_rows weights·BCE(x wᵀ + b, target) + ½ l2 ‖w‖² for each label."""

    def __init__(self, x: Tensor, target: Tensor, weights: Tensor, l2: float) -> None:
        self.x = x
        # One label's rows side by side: labels that are solved are dropped by taking rows of these.
        self.sign = (2 * target - 1).T.contiguous()
        self.weights = weights.T.contiguous()
        self.l2 = l2
        self.spectrum, self.basis = torch.linalg.eigh(x.T @ x / len(x))
        self.spectrum = self.spectrum.clamp(min=0.0)

    def evaluate(self, label: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss [A] (float64), gradient [A, d + 1] and mean curvature [A] at theta [A, d + 1] of some labels."""
        w, b = theta[:, :-1], theta[:, -1:]
        sign, weights = self.sign[label], self.weights[label]
        margin = (w @ self.x.T + b) * sign
        loss = (weights * torch.nn.functional.softplus(-margin)).sum(1, dtype=torch.float64)
        loss += 0.5 * self.l2 * w.double().square().sum(1)
        wrong = torch.sigmoid(-margin)
        pull = weights * wrong
        slope = -pull * sign
        gradient = torch.cat([slope @ self.x + self.l2 * w, slope.sum(1, keepdim=True)], 1)
        return loss, gradient, (pull * (1 - wrong)).sum(1)

    def precondition(self, vectors: Tensor, curvature: Tensor) -> Tensor:
        """(curvature · [XᵀX/n, 1] + l2)⁻¹ of each row of vectors [A, d + 1]."""
        turned = vectors[:, :-1] @ self.basis
        turned /= curvature[:, None] * self.spectrum + self.l2
        return torch.cat([turned @ self.basis.T, vectors[:, -1:] / curvature[:, None].clamp(min=1e-6)], 1)

    def gap(self, state: _State) -> Tensor:
        """[A] upper bound of (loss − minimum) / loss.

        The penalty makes the objective l2-strongly convex in w, so the minimum over w is at least
        loss − ‖∂w‖²/(2 l2). The bias has no penalty; its part is the Newton decrement, ∂b²/(2 curvature).
        """
        g = state.gradient.double()
        bound = g[:, :-1].square().sum(1) / (2 * self.l2) + g[:, -1].square() / (2 * state.curvature.double())
        return bound / state.loss.clamp(min=1e-300)


def fit_dense(x: Tensor, target: Tensor, weights: Tensor, *, l2: float, tolerance: float) -> DenseFit:
    """Minimise Σ_rows weights·BCE(x wᵀ + b, target) + ½ l2 ‖w‖² for every label.

    Args:
        x: [n, d] float32, standardised.
        target: [n, P] 0 or 1.
        weights: [n, P] weight of each row in each label's loss, ≥ 0.
        l2: > 0.
        tolerance: a label is solved when (loss − minimum) / loss is at most this.
    """
    problem = _Problem(x, target, weights, l2)
    n_labels, width = target.shape[1], x.shape[1] + 1
    label, theta = torch.arange(n_labels), torch.zeros(n_labels, width)
    found, gaps = torch.zeros(n_labels, width), torch.zeros(n_labels, dtype=torch.float64)
    empty = torch.zeros(n_labels, 0, width)
    state = _State(label, theta, *problem.evaluate(label, theta), empty, empty, torch.zeros(n_labels, 0))
    steps = 0
    while len(state.label):
        gap = problem.gap(state)
        found[state.label], gaps[state.label] = state.theta, gap
        moved = torch.ones(len(gap), dtype=torch.bool)
        if steps < MAX_STEPS:
            state, moved = _step(problem, state, gap > tolerance)
        steps += 1
        if steps > MAX_STEPS or not moved.any():
            break
        state = state.of(moved)
    return DenseFit(found[:, :-1].contiguous(), found[:, -1].clone(), gaps, steps - 1)


def _step(problem: _Problem, state: _State, open_: Tensor) -> tuple[_State, Tensor]:
    """One L-BFGS step of the labels that are open; which of them moved.

    A label that cannot lower its loss any more (float32) does not move, and is left where it is.
    """
    state = state.of(open_)
    if not len(state.label):
        return state, torch.zeros(0, dtype=torch.bool)
    direction = -_two_loops(problem, state)
    slope = (direction.double() * state.gradient.double()).sum(1)
    rate = torch.ones(len(slope))
    best = state.of(torch.arange(len(slope)))
    waiting = torch.arange(len(slope))
    for _ in range(12):
        theta = state.theta[waiting] + rate[waiting, None] * direction[waiting]
        loss, gradient, curvature = problem.evaluate(state.label[waiting], theta)
        # Armijo's rule. A label that fails it takes half the step; the others keep what they have.
        good = loss <= state.loss[waiting] + 1e-4 * rate[waiting].double() * slope[waiting]
        where = waiting[good]
        best.theta[where], best.gradient[where] = theta[good], gradient[good]
        best.loss[where], best.curvature[where] = loss[good], curvature[good]
        waiting = waiting[~good]
        if not len(waiting):
            break
        rate[waiting] /= 2
    moved = torch.ones(len(slope), dtype=torch.bool)
    moved[waiting] = False
    move, change = best.theta - state.theta, best.gradient - state.gradient
    product = (move * change).sum(1)
    # A pair counts if the curvature along it is positive; for a convex loss only rounding makes it otherwise.
    counts = product > 1e-12 * change.square().sum(1).clamp(min=1e-30)
    inverse = torch.where(counts, 1 / torch.where(counts, product, torch.ones_like(product)), torch.zeros(()))
    best.moves = torch.cat([state.moves, move[:, None]], 1)[:, -MEMORY:]
    best.changes = torch.cat([state.changes, change[:, None]], 1)[:, -MEMORY:]
    best.inverse = torch.cat([state.inverse, inverse[:, None]], 1)[:, -MEMORY:]
    return best, moved


def _two_loops(problem: _Problem, state: _State) -> Tensor:
    """The approximate inverse Hessian times the gradient, [A, d + 1] (Nocedal & Wright, algorithm 7.4)."""
    q = state.gradient.clone()
    kept = []
    for pair in range(state.moves.shape[1] - 1, -1, -1):
        alpha = state.inverse[:, pair] * (state.moves[:, pair] * q).sum(1)
        q -= alpha[:, None] * state.changes[:, pair]
        kept.append(alpha)
    q = problem.precondition(q, state.curvature)
    for pair in range(state.moves.shape[1]):
        beta = state.inverse[:, pair] * (state.changes[:, pair] * q).sum(1)
        q += (kept.pop() - beta)[:, None] * state.moves[:, pair]
    return q
