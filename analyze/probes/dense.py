"""Dense linear probes of activations, one per label: the reference for absorption and sparse probing.

Both classes carry the same total weight: a positive row counts n_negative/n_positive times (SAEBench's `pos_weight`).
The objective is strictly convex, so no result depends on the order of batches or on a learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .labels import Labels
from .lbfgs import fit_dense
from .scores import Scores, best_threshold, score
from .splits import ProbeSplit

L2 = 1e-3
"""Weight of ½‖w‖² on the standardised scale."""

TOLERANCE = 1e-5
"""Relative distance of the loss from its minimum at which a probe is solved."""

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
    l2: float = L2,
    tolerance: float = TOLERANCE,
) -> LinearProbes:
    """One linear probe per label, the optimum of the class-balanced cross-entropy of the training rows.

    Each dimension is standardised on the training rows first (a residual stream has dimensions a hundred times larger
    than the rest). The result is folded back: weights and biases apply to raw x. Thresholds have the largest F1 on the
    validation rows: class weights make 0 far too generous for a rare label.

    Args:
        x: [n, d] activations, any float dtype.
        labels: of the same rows; a row whose label is unknown takes no part in that label's probe.
        l2: weight of ½‖w‖² on the standardised scale.
        tolerance: relative distance from the minimum, of :func:`~.lbfgs.fit_dense`.

    Raises:
        ValueError: a label has no positive or no negative training row.
    """
    weight, bias = fit_raw(
        x[torch.from_numpy(split.train)], labels.values[split.train], labels.names, l2=l2, tolerance=tolerance
    )
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


def fit_raw(
    x: Tensor, values: NDArray[np.int8], names: tuple[str, ...], *, l2: float = L2, tolerance: float = TOLERANCE
) -> tuple[Floats, Doubles]:
    """(weight [P, d], bias [P]) of one probe per label, on raw activations: :func:`train_probes` without its scores.

    Args:
        x: [n, d] activations, all of them to learn from.
        values: [n, P] labels, −1 for unknown.
        names: [P] labels, for the error.

    Raises:
        ValueError: a label has no positive or no negative row.
    """
    train = x.to(torch.float32)
    mean = train.mean(dim=0)
    std = train.std(dim=0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    train = (train - mean) / std
    weights = torch.from_numpy(class_weights(values, names))
    target = torch.from_numpy((values == 1).astype(np.float32))
    fit = fit_dense(train, target, weights, l2=l2, tolerance=tolerance)
    w, b = fit.weights, fit.intercepts
    # Standardised score: w·(x − mean)/std + b = (w/std)·x + (b − (w/std)·mean). The bias in float64, because it is a
    # difference of large numbers where the mean of a dimension is large.
    w = w / std
    bias = (b.double() - w.double() @ mean.double()).numpy()
    return w.numpy(), bias


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
