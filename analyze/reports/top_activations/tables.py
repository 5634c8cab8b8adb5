"""The tables of the report of top activations."""

from __future__ import annotations

from typing import Any

from ...result import Table, TableColumn, show
from .config import TopActivationsConfig
from .summary import Summary

OTHERS_LISTED = 12
"""Latents listed beside the strongest one that peaks in a context."""


def tables(summary: Summary, config: TopActivationsConfig) -> list[Table]:
    """Strongest latents, favourite tokens, common words, samples."""
    return [
        _ranking(summary),
        _peaks(summary.peaks),
        _words(summary.words),
        _samples(summary, config),
    ]


def _ranking(summary: Summary) -> Table:
    keys = ("latent", "max", "mean", "count", "peak", "text")
    return Table(
        "ranking",
        "Strongest latents",
        "Latents by their largest activation, excluding position 0 and massive rows, with its context; the peak is "
        "marked «so». A context in which several latents peak is listed once, with the strongest of them; the last "
        f"column has the next ones, at most {OTHERS_LISTED}.",
        [
            TableColumn("latent", "latent"),
            TableColumn("max", "number"),
            TableColumn("mean", "number", "Where it fires."),
            TableColumn("fires on rows", "integer"),
            TableColumn("peak", "text"),
            TableColumn("context", "text"),
            TableColumn("latents with this peak", "integer"),
            TableColumn("others", "latents"),
        ],
        [
            [*(row[key] for key in keys), 1 + len(row["others"]), row["others"][:OTHERS_LISTED]]
            for row in summary.ranking
        ],
        summary.n_peaks,
    )


def _peaks(peaks: list[dict[str, Any]]) -> Table:
    return Table(
        "peaks",
        "Favourite tokens",
        "Tokens by the number of latents that fire on them most.",
        [
            TableColumn("token", "text"),
            TableColumn("latents", "integer"),
            TableColumn("share of the corpus", "percent"),
        ],
        [[p["token"], p["latents"], p["share_of_corpus"]] for p in peaks],
        len(peaks),
    )


def _words(words: list[dict[str, Any]]) -> Table:
    return Table(
        "words",
        "Common words in top contexts",
        "Words (and marks) that more latents have in their top contexts than chance explains: the number of latents, "
        "and the number expected from as many random contexts. Special tokens are no words.",
        [
            TableColumn("word", "text"),
            TableColumn("latents", "integer"),
            TableColumn("expected", "integer", "From random contexts of the corpus."),
        ],
        [[w["word"], w["latents"], w["expected"]] for w in words],
        len(words),
    )


def _samples(summary: Summary, config: TopActivationsConfig) -> Table:
    samples, length = summary.samples, summary.length
    per_latent, (low, high) = samples["per_latent"], samples["activation_range"]
    rows = [
        ["samples", show(samples["total"])],
        ["samples per latent, mean (at most)", f"{show(per_latent['mean'])} ({show(per_latent['max'])})"],
        ["activation range", f"{show(low)} … {show(high)}"],
        ["distinct contexts", show(samples["distinct_contexts"])],
        ["distinct contexts per latent, mean share", show(samples["context_diversity"], "percent")],
        [
            "length of a context in tokens, mean (range)",
            f"{show(length['mean'])} ({show(length['min'])} … {show(length['max'])})",
        ],
    ]
    return Table(
        "samples",
        "Samples",
        f"Each latent's {config.raw_top} largest activations, repeats included. A context is the peak and the "
        f"{config.before} tokens ahead of it; {config.after} tokens after it are shown too. The length of a "
        f"context is over the {config.top} examples of each latent, as they are shown.",
        [TableColumn("figure", "text"), TableColumn("value", "text")],
        rows,
        len(rows),
    )
