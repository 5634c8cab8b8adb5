"""What tables, columns and report.json share: texts of latents, their ranking, and the samples in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...subject.subject import Subject
from .collected import Collected
from .config import TopActivationsConfig
from .contexts import Contexts, common_peaks, common_words
from .statistics import Statistics

RANKED = 100
"""Latents listed by their largest activation."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Plain data, ready to show.

    Attributes:
        fires_on: [F] the favourite tokens of each latent.
        ranking: the strongest latents, each a row of report.json.
        samples: numbers on each latent's largest activations, repeats included.
        length: mean, least and most tokens of context of the examples shown.
        words, peaks: common in top contexts; favourite tokens.
    """

    fires_on: list[str]
    ranking: list[dict[str, Any]]
    samples: dict[str, Any]
    length: dict[str, Any]
    words: list[dict[str, Any]]
    peaks: list[dict[str, Any]]

    @classmethod
    def of(cls, collected: Collected, s: Statistics, subject: Subject, config: TopActivationsConfig) -> Summary:
        """From one pass and its statistics."""
        label, contexts = subject.vocabulary.label, Contexts.of(subject, config)
        return cls(
            fires_on=[" ".join(label(int(t)) for t in row if t >= 0) for row in s.favourites],
            ranking=_ranking(collected, s, contexts),
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


def _ranking(collected: Collected, s: Statistics, contexts: Contexts) -> list[dict[str, Any]]:
    """The strongest living latents with their peak and its context."""
    order = np.argsort(-np.nan_to_num(s.largest, nan=-1.0), kind="stable")
    rows = collected.top.row[:, 0]
    return [
        {
            "latent": int(i),
            "max": s.largest[i],
            "mean": s.mean[i],
            "count": int(s.fired[i]),
            "peak": contexts.vocabulary.label(int(contexts.tokens[rows[i]])),
            "text": contexts.text(int(rows[i])),
        }
        for i in order[:RANKED]
        if np.isfinite(s.largest[i])
    ]


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
