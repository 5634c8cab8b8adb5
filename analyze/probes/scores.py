"""Scores of a binary prediction: F1, precision, recall, MCC, AUC; and the threshold with the best F1."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Scores:
    """Scores of one label's predictions (score > threshold) on held-out rows.

    Attributes:
        f1, precision, recall: of the positive class; 0 where undefined.
        balanced_accuracy: mean of the recalls of both classes; 0.5 by chance.
        mcc: Matthews correlation coefficient; 0 by chance.
        auc: area under the ROC curve, ties count one half; 0.5 by chance.
        positives, negatives: numbers of rows.
        threshold: the threshold of the prediction.
    """

    f1: float
    precision: float
    recall: float
    balanced_accuracy: float
    mcc: float
    auc: float
    positives: int
    negatives: int
    threshold: float

    def to_dict(self) -> dict[str, float | int]:
        """Plain data."""
        return asdict(self)


def score(truth: Bools, scores: Floats, threshold: float) -> Scores:
    """Scores of the prediction `scores > threshold` [n] against truth [n]."""
    predicted = scores > threshold
    tp = int((predicted & truth).sum())
    fp = int((predicted & ~truth).sum())
    positives, negatives = int(truth.sum()), int((~truth).sum())
    fn, tn = positives - tp, negatives - fp
    recall, specificity = _ratio(tp, positives), _ratio(tn, negatives)
    scale = math.sqrt(float(tp + fp) * positives * negatives * (tn + fn))
    return Scores(
        f1=_ratio(2 * tp, 2 * tp + fp + fn),
        precision=_ratio(tp, tp + fp),
        recall=recall,
        balanced_accuracy=(recall + specificity) / 2,
        mcc=(tp * tn - fp * fn) / scale if scale > 0 else 0.0,
        auc=auc(truth, scores),
        positives=positives,
        negatives=negatives,
        threshold=float(threshold),
    )


def f1(truth: Bools, scores: Floats, threshold: float) -> float:
    """F1 of the prediction `scores > threshold`; 0 where undefined."""
    predicted = scores > threshold
    return _ratio(2 * int((predicted & truth).sum()), int(predicted.sum()) + int(truth.sum()))


def best_threshold(truth: Bools, scores: Floats, floor: float = -np.inf) -> float:
    """The threshold with the largest F1 on these rows: the midpoint of two neighbouring scores, at least `floor`.

    Ties go to the larger threshold (fewer predictions). Without a positive row it is the larger of 0 and `floor`.

    Args:
        truth: [n] whether the label holds.
        scores: [n].
        floor: lower bound of the threshold.
    """
    if not truth.any():
        return max(0.0, floor)
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    # After sorting, a cut below place i says yes to i + 1 rows, of which hits[i] are true: every F1 in one pass.
    hits = np.cumsum(truth[order])
    f1_at = 2 * hits / (np.arange(1, len(ordered) + 1) + int(truth.sum()))
    # A cut can only fall between two different scores (or below all of them).
    cut = np.append(ordered[:-1] > ordered[1:], True) & (ordered > floor)
    if not cut.any():
        return floor
    best = int(np.argmax(np.where(cut, f1_at, -1.0)))
    below = ordered[best + 1] if best + 1 < len(ordered) else ordered[best] - 1.0
    return max(float((ordered[best] + below) / 2), floor)


def auc(truth: Bools, scores: Floats) -> float:
    """Area under the ROC curve: P(score of a positive > that of a negative) + ½ P(equal); 0.5 with one class only."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return 0.5
    # Mann–Whitney: the rank sum of the positives, less its least value, counts the pairs in the right order.
    ranks = rankdata(scores)
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
