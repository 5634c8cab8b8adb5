"""What tables, columns and report.json share: texts of latents, their ranking, and the samples in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...subject.subject import Subject
from .collected import Collected
from .config import TopActivationsConfig
from .contexts import Contexts, common_peaks, common_words
from .statistics import Statistics

RANKED = 100
"""Contexts listed by the largest activation of a latent that peaks there."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Plain data, ready to show.

    Attributes:
        fires_on: [F] the favourite tokens of each latent.
        ranking: the strongest latents, each a row of report.json; n_peaks: contexts in which latents peak.
        samples: numbers on each latent's largest activations, repeats included.
        length: mean, least and most tokens of context of the examples shown.
        words, peaks: common in top contexts; favourite tokens.
    """

    fires_on: list[str]
    ranking: list[dict[str, Any]]
    n_peaks: int
    samples: dict[str, Any]
    length: dict[str, Any]
    words: list[dict[str, Any]]
    peaks: list[dict[str, Any]]

    @classmethod
    def of(cls, collected: Collected, s: Statistics, subject: Subject, config: TopActivationsConfig) -> Summary:
        """From one pass and its statistics."""
        label, contexts = subject.vocabulary.label, Contexts.of(subject, config)
        ranking, n_peaks = _ranking(collected, s, contexts)
        return cls(
            fires_on=[" ".join(label(int(t)) for t in row if t >= 0) for row in s.favourites],
            ranking=ranking,
            n_peaks=n_peaks,
            samples=_samples(collected, s),
            length={
                "mean": mean(s.context_mean),
                "min": float(np.nanmin(s.context_min)) if s.alive.any() else None,
                "max": float(np.nanmax(s.context_max)) if s.alive.any() else None,
            },
            words=common_words(contexts, collected, subject),
            peaks=common_peaks(s.favourites, subject),
        )


def mean(values: NDArray[np.float64]) -> float | None:
    """Over the latents that are scored; None where none is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _ranking(collected: Collected, s: Statistics, contexts: Contexts) -> tuple[list[dict[str, Any]], int]:
    """(the strongest latents by their largest activation on ordinary rows, number of different peaks).

    Latents that peak in the same context share one entry: the strongest, and the `others` by strength.
    """
    order = np.argsort(-np.nan_to_num(s.largest_ordinary, nan=-1.0), kind="stable")
    rows, keys = collected.top.row[:, 0], collected.top.key[:, 0]
    by_context: dict[int, list[int]] = {}
    for i in order[: int(np.isfinite(s.largest_ordinary).sum())].tolist():
        by_context.setdefault(int(keys[i]), []).append(i)
    ranking = [
        {
            "latent": i,
            "max": s.largest_ordinary[i],
            "mean": s.mean[i],
            "count": int(s.fired[i]),
            "peak": contexts.vocabulary.label(int(contexts.tokens[rows[i]])),
            "text": contexts.text(int(rows[i])),
            "others": others,
        }
        for i, *others in islice(by_context.values(), RANKED)
    ]
    return ranking, len(by_context)


def _samples(collected: Collected, s: Statistics) -> dict[str, Any]:
    raw = collected.raw
    values = raw.value[raw.score > 0]
    return {
        "per_latent": {"mean": float(raw.kept.mean()), "max": int(raw.kept.max(initial=0))},
        "total": int(raw.kept.sum()),
        "distinct_contexts": round(float(np.nansum(s.unique * raw.kept))),
        "activation_range": [
            float(values.min()) if len(values) else None,
            float(np.nanmax(s.largest)) if s.alive.any() else None,
        ],
        "context_diversity": mean(s.unique),
    }
