"""Compiled loops of the L1 solver (:mod:`.l1`): losses, the dual bound, coordinate descent, proximal Newton steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...shared.codes.compiled import compiled


@compiled
def losses(weight: Any, sign: Any, logits: Any, slope: Any, curve: Any) -> float:
    """Σ c log(1 + exp(−s z)), and its first and second derivatives in z, which are written to slope and curve [n]."""
    total = 0.0
    for i in range(len(logits)):
        margin = sign[i] * logits[i]
        small = np.exp(-abs(margin))
        # σ(−margin), the probability of the wrong answer, without overflow on either side.
        wrong = small / (1 + small) if margin > 0 else 1 / (1 + small)
        total += weight[i] * (np.log1p(small) + max(-margin, 0.0))
        slope[i] = -weight[i] * sign[i] * wrong
        curve[i] = weight[i] * wrong * (1 - wrong)
    return total


@compiled
def _loss(weight: Any, sign: Any, logits: Any, step: Any, rate: float) -> float:
    """The loss at logits + rate·step."""
    total = 0.0
    for i in range(len(logits)):
        margin = sign[i] * (logits[i] + rate * step[i])
        total += weight[i] * (np.log1p(np.exp(-abs(margin))) + max(-margin, 0.0))
    return total


@compiled
def best_bias(weight: Any, sign: Any, logits: Any, slope: Any, curve: Any) -> float:
    """Move the logits [n] by the bias that minimises the loss; returns the bias moved by. Leaves slope and curve fresh.

    After it Σ slope = 0 to rounding, which the dual point needs: the bias has no penalty.
    """
    moved = 0.0
    value = losses(weight, sign, logits, slope, curve)
    ones = np.ones(len(logits))
    for _ in range(50):
        gradient, second, total = 0.0, 0.0, 0.0
        for i in range(len(logits)):
            gradient, second, total = gradient + slope[i], second + curve[i], total + weight[i]
        if abs(gradient) <= 1e-13 * total:
            break
        step = -gradient / max(second, 1e-300)
        rate = 1.0
        while rate > 1e-3 and not _loss(weight, sign, logits, ones, rate * step) <= value:
            rate /= 2
        if rate <= 1e-3:
            break  # rounding: the loss cannot fall any more
        for i in range(len(logits)):
            logits[i] += rate * step
        moved += rate * step
        value = losses(weight, sign, logits, slope, curve)
    return moved


@compiled
def dual(weight: Any, slope: Any, scale: float) -> float:
    """The dual objective at scale·slope: Σ c·H(q), H the entropy and q = scale·σ(−margin) the answer's complement."""
    total = 0.0
    for i in range(len(slope)):
        if weight[i] > 0:
            q = min(max(scale * abs(slope[i]) / weight[i], 0.0), 1.0)
            if 0 < q < 1:
                total -= weight[i] * (q * np.log(q) + (1 - q) * np.log1p(-q))
    return total


@compiled
def gradient_of(indptr: Any, rows: Any, data: Any, slope: Any, gradient: Any) -> None:
    """Xᵀ slope, written to gradient [F]."""
    for j in range(len(gradient)):
        total = 0.0
        for e in range(indptr[j], indptr[j + 1]):
            total += data[e] * slope[rows[e]]
        gradient[j] = total


@compiled
def _weighted_moments(
    indptr: Any, rows: Any, data: Any, curve: Any, working: Any, total_curve: float, means: Any, seconds: Any
) -> None:
    """Curve-weighted mean and centred second moment of each latent of the working set; 0 for a constant one."""
    for place in range(len(working)):
        j = working[place]
        total, raw = 0.0, 0.0
        for e in range(indptr[j], indptr[j + 1]):
            pull = curve[rows[e]] * data[e]
            total += pull
            raw += pull * data[e]
        means[place] = total / total_curve
        centred = raw - means[place] * means[place] * total_curve
        seconds[place] = centred if centred > 1e-10 * raw else 0.0


@compiled
def _descend(
    indptr: Any, rows: Any, data: Any, slope: Any, curve: Any, working: Any, l1: float, step: Any, target: Any
) -> float:
    """Minimise the quadratic model on the working set by cyclic coordinate descent.

    The model at w: slope·r + ½ Σ curve r² + λ Σ |target|, with r = X (target − w) + bias. The bias is always the best
    one: a latent that moves by t moves it by −t·mean, mean the latent's curve-weighted mean. So the sum of
    slope + curve·r stays 0, and latents do not fight the bias for what both explain.

    Args:
        step: [n] set to the change of the logits r. target: [F] begins as w, ends as the minimiser.

    Returns:
        The change of the bias.
    """
    total_curve, bias = 1e-300, 0.0
    for i in range(len(step)):
        step[i] = 0.0
        total_curve += curve[i]
        bias -= slope[i]
    bias /= total_curve
    means, seconds = np.zeros(len(working)), np.zeros(len(working))
    _weighted_moments(indptr, rows, data, curve, working, total_curve, means, seconds)
    first = 0.0
    for sweep in range(200):
        gained = 0.0
        for place in range(len(working)):
            j = working[place]
            second = seconds[place]
            if second <= 0.0:
                continue
            # Invariant: r is step (without the bias) plus bias.
            gradient = bias * means[place] * total_curve
            for e in range(indptr[j], indptr[j + 1]):
                i = rows[e]
                gradient += data[e] * (slope[i] + curve[i] * step[i])
            centre = target[j] - gradient / second
            new = np.sign(centre) * max(abs(centre) - l1 / second, 0.0)
            change = new - target[j]
            if change != 0.0:
                for e in range(indptr[j], indptr[j + 1]):
                    step[rows[e]] += data[e] * change
                bias -= change * means[place]
                target[j] = new
                gained = max(gained, second * change * change)
        if sweep == 0:
            first = gained
        # A hundredth of the first sweep's movement (its square here): the model is only a model.
        if gained <= 1e-4 * first or gained == 0.0:
            break
    for i in range(len(step)):
        step[i] += bias
    return bias


@compiled
def newton(
    indptr: Any,
    rows: Any,
    data: Any,
    weight: Any,
    sign: Any,
    working: Any,
    w: Any,
    l1: float,
    wanted: float,
    logits: Any,
    slope: Any,
    curve: Any,
) -> float:
    """Proximal Newton steps on the working set; moves w, logits, slope and curve.

    Args:
        wanted: stop when no latent of the set is further from its optimality condition.

    Returns:
        The change of the bias.
    """
    moved, loss = 0.0, losses(weight, sign, logits, slope, curve)
    step, target = np.zeros(len(logits)), w.copy()
    for _ in range(20):
        shift = _descend(indptr, rows, data, slope, curve, working, l1, step, target)
        # Armijo's rule with the model's own promise, which is negative. The slack lets the last Newton steps pass:
        # they gain less than the rounding of the loss.
        promise = l1 * _growth(w, target, working, 1.0)
        for i in range(len(step)):
            promise += slope[i] * step[i]
        rate = 1.0
        while promise < 0.0 and rate > 1e-4:
            allowed = loss + 1e-3 * rate * promise + 1e-13 * loss
            if _loss(weight, sign, logits, step, rate) + l1 * _growth(w, target, working, rate) <= allowed:
                break
            rate /= 2
        if promise >= 0.0 or rate <= 1e-4:
            break
        for j in working:
            # The minimiser itself at full rate, so that its zeros are exact.
            w[j] = target[j] if rate == 1.0 else w[j] + rate * (target[j] - w[j])
            target[j] = w[j]
        for i in range(len(step)):
            logits[i] += rate * step[i]
        moved += rate * shift
        loss = losses(weight, sign, logits, slope, curve)
        if _worst(indptr, rows, data, slope, working, w, l1) <= wanted:
            break
    return moved


@compiled
def _growth(w: Any, target: Any, working: Any, rate: float) -> float:
    """Σ|w| after a step of this rate towards the target, less Σ|w| before."""
    total = 0.0
    for j in working:
        total += abs(w[j] + rate * (target[j] - w[j])) - abs(w[j])
    return total


@compiled
def _worst(indptr: Any, rows: Any, data: Any, slope: Any, working: Any, w: Any, l1: float) -> float:
    """Largest distance from optimality: gradient = −l1·sign(w), |gradient| ≤ l1 where w = 0, and 0 for the bias."""
    worst = 0.0
    for i in range(len(slope)):
        worst += slope[i]
    worst = abs(worst)
    for j in working:
        gradient = 0.0
        for e in range(indptr[j], indptr[j + 1]):
            gradient += data[e] * slope[rows[e]]
        residual = max(abs(gradient) - l1, 0.0) if w[j] == 0.0 else abs(gradient + l1 * np.sign(w[j]))
        worst = max(worst, residual)
    return worst
