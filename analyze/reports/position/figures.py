"""The numbers of the position report: its lead, headline figures, columns of the table of latents, and terms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...result import Aim, Column, Figure, show
from .config import PositionConfig
from .scores import PositionScores

MAX_BOS_SHARE = 0.2
"""The aim of training against duplicates: at most this share of the top activations at position 0."""


def lead(s: PositionScores, top: float | None, top_distinct: float | None, *, bos: bool) -> str:
    """What was found, in two sentences; a third where the cache has no BOS.

    Args:
        top, top_distinct: share of all latents' top activations at position 0, repeats included, and each context once.
        bos: sequences begin with a BOS.
    """
    distinct = (
        f" ({show(top_distinct, 'percent')} once identical contexts count once)" if top_distinct is not None else ""
    )
    return (
        f"{show(top, 'percent') if top is not None else 'None'} of the top activations lie at position 0, which holds "
        f"{show(float(s.row_share[0]), 'percent')} of the rows{distinct}. {int(s.bos.sum()):,} of {s.n_scored:,} "
        f"scored latents are locked to position 0, {int(s.biased.sum()):,} to another stretch of the sequence; "
        f"{s.n_alive - s.n_scored:,} fire too rarely to be scored."
        + ("" if bos else " This cache has no BOS: position 0 holds the first token of each sequence, whatever it is.")
    )


def figures(
    s: PositionScores, config: PositionConfig, *, top: float | None, top_distinct: float | None
) -> list[Figure]:
    """Position 0 among top activations, biased latents, information about position."""
    base = float(s.row_share[0])
    return [
        Figure(
            "bos_share_top",
            f"position 0 among top-{config.top} activations",
            top,
            f"Share of all latents' {config.top} largest activations that lie at position 0, repeats included.",
            format="percent",
            null=base,
            better="lower",
            short="pos. 0 in top",
            aim=Aim(MAX_BOS_SHARE, f"≤ {show(MAX_BOS_SHARE, 'percent')}"),
            terminal=True,
            before_after=True,
            sweep=True,
        ),
        Figure(
            "bos_share_top_distinct",
            "the same, identical contexts once",
            top_distinct,
            f"As before, with each context (the peak token and the {config.context} ahead of it) counted once per "
            f"latent.",
            format="percent",
            null=base,
            better="lower",
            short="distinct",
            terminal=True,
            before_after=True,
        ),
        *_biased(s, config),
        Figure(
            "mi_excess",
            "mean information about position (bits)",
            _mean(s.mi),
            f"Mutual information of firing and position bin, minus the mean of {config.shifts} circular shifts "
            f"within sequences.",
            with_bos=_mean(s.mi_all),
            without_massive=_mean(s.mi_ordinary),
            null=0.0,
            better="lower",
            in_summary=False,
        ),
    ]


def _biased(s: PositionScores, config: PositionConfig) -> list[Figure]:
    return [
        Figure(
            "n_bos_biased",
            "BOS-biased latents",
            int(s.bos.sum()),
            f"Latents with > {config.bos_share:.0%} of their firings at position 0, > {config.bos_enrichment:g} "
            f"times the base rate, exact binomial test with q < {config.q:g}.",
            format="integer",
            better="lower",
            before_after=True,
        ),
        Figure(
            "n_position_biased",
            "position-biased latents",
            int(s.biased.sum()),
            f"Latents with > {config.bin_share:.0%} of their firings after position 0 in one of {len(s.bin_rows) - 1} "
            f"equal bins, mutual information beyond circular shifts with q < {config.q:g}, excluding position 0.",
            format="integer",
            better="lower",
            before_after=True,
        ),
    ]


def columns(s: PositionScores, config: PositionConfig) -> list[Column]:
    """One number or word for each latent."""
    return [
        Column(
            "position",
            "position",
            "BOS, position, none (neither), rare (not scored) or dead.",
            verdicts(s),
            format="text",
        ),
        Column("bos_share", "at pos. 0", "Share of its firings at position 0.", s.share, format="percent"),
        Column(
            "bos_share_top",
            f"pos. 0 in top {config.top}",
            "Share of its top activations at position 0, repeats included.",
            s.top,
            format="percent",
        ),
        Column(
            "bos_share_top_distinct",
            "… distinct",
            "The same with identical contexts once.",
            s.top_distinct,
            format="percent",
            shown=False,
        ),
        Column("bos_enrichment", "pos. 0 enrichment", "(n_i0/n_i) / (N_0/N).", s.enrichment, shown=False),
        Column("position_kl", "position KL", "Bits from the base rate, excluding position 0.", s.kl, shown=False),
        Column(
            "position_mi",
            "position MI",
            "Mutual information with position beyond circular shifts, bits, excluding position 0.",
            s.mi,
            shown=False,
        ),
        Column(
            "spearman",
            "Spearman",
            "ρ of mean activation with position, excluding position 0.",
            s.spearman,
            shown=False,
        ),
    ]


def verdicts(s: PositionScores) -> list[str]:
    """What each latent is locked to, if anything [F]."""
    words = np.select(
        [s.fired == 0, ~s.scored, s.bos & s.biased, s.bos, s.biased],
        ["dead", "rare", "BOS + position", "BOS", "position"],
        "none",
    )
    return [str(word) for word in words]


def data(s: PositionScores, bin_names: list[str]) -> dict[str, Any]:
    """Further plain data for report.json."""
    return {
        "rows": int(s.bin_rows.sum()),
        "base_rate": float(s.row_share[0]),
        "bins": {"rows": s.bin_rows, "edges": bin_names},
        "scored": s.n_scored,
        "not_scored": s.n_alive - s.n_scored,
        "dead": len(s.scored) - s.n_alive,
    }


def on_disk(s: PositionScores, config: PositionConfig) -> dict[str, NDArray[Any]]:
    """The columns of position.parquet."""
    return {
        "latent": np.arange(len(s.scored)),
        "fired": s.fired,
        "bos_share": s.share,
        "bos_enrichment": s.enrichment,
        "bos_p": s.p,
        "bos_q": s.q,
        "bos_biased": s.bos,
        f"bos_share_top{config.top}": s.top,
        f"bos_share_top{config.top}_distinct": s.top_distinct,
        "kl": s.kl,
        "kl_with_bos": s.kl_all,
        "mi_excess": s.mi,
        "mi_excess_with_bos": s.mi_all,
        "mi_excess_without_massive": s.mi_ordinary,
        "mi_q": s.mi_q,
        "largest_bin": s.biggest_bin,
        "largest_bin_share": s.biggest,
        "position_biased": s.biased,
        "spearman": s.spearman,
        "spearman_with_bos": s.spearman_all,
    }


def definitions(config: PositionConfig) -> list[tuple[str, str]]:
    """The terms of this report."""
    return [
        (
            "BOS bias",
            f"Position 0 is over-represented: share of firings > {config.bos_share:.0%}, enrichment "
            f"(n_i0/n_i)/(N_0/N) > {config.bos_enrichment:g}, and an exact binomial test against the base rate N_0/N "
            f"with Benjamini–Hochberg q < {config.q:g}.",
        ),
        (
            "Position bias",
            f"Excluding position 0: more than {config.bin_share:.0%} of the firings in one of {config.bins} equal "
            f"bins, and mutual information beyond {config.shifts} circular shifts within sequences (gamma fitted to "
            f"the shifts, q < {config.q:g}).",
        ),
        (
            "Circular shift",
            "Every sequence is rotated by its own random amount: bursts stay, the link to position goes.",
        ),
        (
            "KL",
            "Kullback–Leibler divergence of a latent's firings over bins from the rows', Miller–Madow corrected, in "
            "bits.",
        ),
        (
            "Not scored",
            f"Latents that fire on fewer than {config.min_fired} rows: their figures would be noise.",
        ),
        (
            "Identical contexts",
            f"The same peak token with the same {config.context} tokens ahead of it. They repeat in any corpus, "
            f"always at position 0.",
        ),
    ]


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
