"""Learning rate over steps: pure functions, so a resumed run needs no state for them."""

from __future__ import annotations

import math


def warmup_cosine(step: int, peak: float, warmup_steps: int, total_steps: int, final_fraction: float) -> float:
    """The rate of update `step`, from 1: linear to `peak`, half a cosine to final_fraction·peak at `total_steps`.

    warm-up:  peak · step/warmup_steps                                        for step ≤ warmup_steps
    decay:    peak · (f + (1 − f)·½(1 + cos π·(step − w)/(total − w)))        after, so the last update has f·peak
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    return peak * cosine(1.0, final_fraction, (step - warmup_steps) / (total_steps - warmup_steps))


def warmup_constant(step: int, peak: float, warmup_steps: int) -> float:
    """The rate of update number `step`: linear to `peak`, then constant."""
    return peak * min(1.0, step / warmup_steps) if warmup_steps else peak


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress ≤ 0 to `end` at progress ≥ 1 along half a cosine."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(start: float, end: float, progress: float) -> float:
    """From `start` at progress ≤ 0 to `end` at progress ≥ 1 along a line."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def default_lr(latents: int) -> float:
    """2e-4 / √(F / 2^14), the scaling of Gao et al. 2024 (arXiv 2406.04093) for Adam."""
    return 2e-4 / math.sqrt(latents / 2**14)
