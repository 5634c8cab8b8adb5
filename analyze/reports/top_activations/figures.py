"""The numbers of the report of top activations: lead, headline figures, columns of the table of latents, and terms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...result import Column, Figure, number
from .collected import Collected
from .config import TopActivationsConfig
from .statistics import Statistics
from .summary import Summary, mean


def lead(s: Statistics, known: bool) -> str:
    """What was found, in two sentences.

    Args:
        known: the cache has a tokenizer.
    """
    return (
        f"{int(s.alive.sum()):,} of {len(s.alive):,} latents fired. Of {s.n_scored:,} that fired often enough, "
        f"{s.n_specialised:,} are specialised in a few tokens or {s.source}s and {s.verdicts.get('general', 0):,} are "
        "general." + ("" if known else " The cache has no tokenizer: tokens are shown as ids.")
    )


def figures(s: Statistics, config: TopActivationsConfig) -> list[Figure]:
    """Specialised latents, distinct contexts, firing rate."""
    some = s.alive.any()
    return [
        Figure(
            "specialised_share",
            "specialised latents",
            s.n_specialised / s.n_scored if s.n_scored else None,
            f"Share of scored latents whose firings agree in token or {s.source} at least "
            f"{config.specialised_share:.0%} of the time, far beyond the corpus (q < {config.specialised_q:g}).",
            format="percent",
            short="specialised",
            sweep=True,
            before_after=True,
        ),
        Figure(
            "context_diversity",
            "distinct contexts among top activations",
            mean(s.unique),
            f"Share of different contexts among each latent's {config.raw_top} largest activations, mean over latents.",
            format="percent",
            better="higher",
            short="contexts",
            sweep=True,
            before_after=True,
        ),
        *(
            Figure(
                f"strength_{kind}",
                f"mean activation of {kind} latents",
                mean(s.mean[chosen]) if chosen.any() else None,
                f"Of each {kind} latent the mean activation where it fires; of these the mean over latents.",
                short=f"strength ({kind})",
            )
            for kind, chosen in (("specialised", s.specialised), ("general", s.verdict == "general"))
        ),
        Figure(
            "median_density",
            "median firing rate",
            float(np.median(s.density[s.alive])) if some else None,
            "Share of rows on which a living latent fires.",
            format="percent",
            with_bos=float(np.median(s.density_all[s.alive])) if some else None,
            without_massive=number(np.median(s.density_ordinary[s.alive])) if some else None,
            in_summary=False,
        ),
    ]


def columns(s: Statistics, summary: Summary, config: TopActivationsConfig) -> list[Column]:
    """One number or text for each latent."""
    return [
        Column(
            "fires_on",
            "fires on",
            "Most common tokens of a uniform sample of its firings.",
            summary.fires_on,
            format="text",
        ),
        Column(
            "density",
            "density",
            "Share of rows on which it fires, excluding position 0.",
            s.density,
            format="percent",
        ),
        Column("max_ordinary", "max", "Largest activation, excluding position 0 and massive rows.", s.largest_ordinary),
        Column(
            "max", "max, all rows", "Largest activation, position 0 and massive rows included.", s.largest, shown=False
        ),
        Column("mean", "mean", "Mean activation where it fires.", s.mean, shown=False),
        Column(
            "specialised",
            "specialised",
            f"On what: token, {s.source}, both; or general, rare, dead.",
            [str(v) for v in s.verdict],
            format="text",
        ),
        Column(
            "effective_tokens",
            "effective tokens",
            f"1 / the chance that two of its firings fall on the same token, at most {config.sample}.",
            s.tokens.effective,
            shown=False,
        ),
        Column(
            f"effective_{s.source}s",
            f"effective {s.source}s",
            f"The same for {s.source}s.",
            s.documents.effective,
            shown=False,
        ),
        Column(
            "diversity",
            "distinct contexts",
            "Among its largest activations, repeats included.",
            s.unique,
            format="percent",
            shown=False,
        ),
    ]


def data(collected: Collected, s: Statistics, summary: Summary) -> dict[str, Any]:
    """Further plain data for report.json."""
    return {
        "rows": collected.rows,
        "ranking": summary.ranking,
        "specialisation": s.verdicts,
        "base_agreement": {"token": s.tokens.base, s.source: s.documents.base},
        "samples": summary.samples,
        "context_length": summary.length,
        "common_words": summary.words,
        "common_peaks": summary.peaks,
    }


def on_disk(s: Statistics, summary: Summary) -> dict[str, NDArray[Any]]:
    """The columns of latents.parquet."""
    return {
        "latent": np.arange(len(s.fired)),
        "fired": s.fired,
        "density": s.density,
        "density_with_bos": s.density_all,
        "density_without_massive": s.density_ordinary,
        "max": s.largest,
        "max_ordinary": s.largest_ordinary,
        "mean": s.mean,
        "fires_on": np.array(summary.fires_on),
        "specialised": s.verdict,
        "token_agreement": s.tokens.collision,
        "token_q": s.tokens.q,
        f"{s.source}_agreement": s.documents.collision,
        f"{s.source}_q": s.documents.q,
        "context_diversity": s.unique,
    }


def definitions(s: Statistics, config: TopActivationsConfig) -> list[tuple[str, str]]:
    """The terms of this report."""
    return [
        (
            "Identical contexts once",
            f"Of examples with the same peak token and the same {config.before} tokens ahead of it, the strongest is "
            f"shown.",
        ),
        (
            "Percentiles",
            f"Quarters of the activations of {config.sample} firings drawn uniformly, excluding position 0.",
        ),
        (
            "Silent on the same token",
            "Rows whose token is one of the latent's favourites and on which it does not fire: what it does not mean.",
        ),
        (
            "Specialised",
            f"Two random firings agree in token (or {s.source}) with a chance of at least "
            f"{config.specialised_share:.0%}, and more often than rows of the corpus (simulated null, "
            f"Benjamini–Hochberg q < {config.specialised_q:g}). Corpus: token {s.tokens.base:.2%}, {s.source} "
            f"{s.documents.base:.2%}. Otherwise general.",
        ),
        ("Rare", f"Fewer than {config.sample} firings, excluding position 0: not scored."),
    ]
