"""The numbers of the reconstruction report: its lead, headline figures, columns of the table of latents, and terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....shared.cache.concentration import concentration_note
from ....shared.cache.outliers import SiteOutliers
from ...result import Column, Figure
from ...subject.subject import Subject
from .config import ReconstructionConfig
from .counts import Counts
from .decoder import Decoder


def lead(counts: Counts, config: ReconstructionConfig, kind: str, outliers: SiteOutliers, heldout: float | None) -> str:
    """FVU, L0, dead and ultra-dense latents in two sentences, then what to read beside an FVU of few dimensions.

    Args:
        counts: of the rows under analysis.
        config: the threshold of ultra-dense latents.
        kind: of coder: "topk SAE".
        outliers: of the target in the cache under analysis.
        heldout: the FVU that training measured on held-out documents; None without it.
    """
    l0 = counts.mean_l0()
    if l0 is None:
        return "No row was seen."
    dead, dense = _dead_and_dense(counts, config)
    note = concentration_note(counts.fvu(), counts.rest.fvu_dims, outliers)
    here = f"{_percent(counts.fvu())} of the variance"
    if heldout is not None:
        here = f"{_percent(heldout)} of the variance of held-out documents ({_percent(counts.fvu())} on the rows here)"
    return (
        f"This {kind} leaves {here} unexplained, with {l0:.1f} active latents per row, excluding position 0 (on the "
        f"rows here {_percent(counts.fvu_all())} including it). {dead:,} of {counts.fired.shape[1]:,} "
        f"latents never fired on {counts.n_rest:,} rows, {dense:,} fire on more than {config.dense_above:.0%} of them."
    ) + ("" if note is None else f" {note}.")


def figures(
    counts: Counts,
    decoder: Decoder,
    config: ReconstructionConfig,
    outliers: SiteOutliers,
    *,
    trained_on: str,
    measured: Mapping[str, Any],
    heldout: bool,
) -> list[Figure]:
    """Reconstruction, sparsity, dead and ultra-dense latents, where the target's variance lies, cosines.

    Where training measured the FVU on held-out documents, that one is the headline, as `train` and `demo` print it.

    Args:
        counts: of the rows under analysis.
        decoder: cosines of the coder.
        config: the threshold of ultra-dense latents.
        outliers: of the target in the cache under analysis.
        trained_on: the cache whose mean is ȳ.
        measured: what training measured on held-out documents (`Subject.measured`).
        heldout: whether the rows under analysis are of held-out documents alone.
    """
    return [
        *_heldout_fvu(measured),
        *_fvu(counts, trained_on, "held-out rows here" if heldout else "all documents", headline=not measured),
        *_firings(counts, config),
        *_concentration(outliers),
        *_cosines(decoder),
    ]


def _heldout_fvu(measured: Mapping[str, Any]) -> list[Figure]:
    """The FVU on held-out documents; [] where training did not measure it."""
    if "fvu" not in measured:
        return []
    where = (
        "on the held-out documents, as training measured it at its end (of an untrained coder before the first step)"
    )
    found = [
        Figure(
            "heldout_fvu",
            "held-out FVU",
            measured["fvu"],
            f"Fraction of variance unexplained, Σ‖y − ŷ‖² / Σ‖y − ȳ‖², {where}. `train` and `demo` print the same.",
            with_bos=measured.get("fvu_with_bos"),
            without_massive=measured.get("fvu_without_massive"),
            null=1.0,
            better="lower",
            terminal=True,
            before_after=True,
            show_twin=True,
        )
    ]
    if "fvu_dims" in measured:
        found.append(
            Figure(
                "heldout_fvu_dims",
                "held-out FVU per dimension",
                measured["fvu_dims"],
                f"Mean over dimensions of the FVU of each, {where}.",
                without_massive=measured.get("fvu_dims_without_massive"),
                null=1.0,
                better="lower",
                before_after=True,
            )
        )
    return found


def _fvu(counts: Counts, trained_on: str, where: str, *, headline: bool) -> list[Figure]:
    """The FVU on the rows under analysis.

    Args:
        where: which rows those are, in a few words.
        headline: whether there is no FVU on held-out documents to come before it.
    """
    massive = counts.n_massive > 0
    return [
        Figure(
            "fvu",
            f"FVU, {where}",
            counts.fvu(),
            f"Fraction of variance unexplained, Σ‖y − ŷ‖² / Σ‖y − ȳ‖², on the {counts.n_rest:,} rows of this report, ȳ "
            f"the mean of the {trained_on}. The mean as a constant reconstruction of its own rows scores 1.",
            with_bos=counts.fvu_all(),
            without_massive=counts.ordinary.fvu if massive else None,
            null=1.0,
            better="lower",
            terminal=headline,
            before_after=True,
            sweep=True,
            show_twin=True,
        ),
        Figure(
            "fvu_dims",
            f"mean FVU per dimension, {where}",
            counts.rest.fvu_dims,
            "Mean over dimensions of Σ(y − ŷ)² / Σ(y − ȳ)² of each: every dimension counts alike, where the FVU weighs "
            "it by its variance.",
            without_massive=counts.ordinary.fvu_dims if massive else None,
            null=1.0,
            better="lower",
            short="FVU per dim.",
            before_after=True,
            sweep=True,
        ),
    ]


def _firings(counts: Counts, config: ReconstructionConfig) -> list[Figure]:
    dead, dense = _dead_and_dense(counts, config)
    fired_all, fired_ordinary, massive = counts.fired_all, counts.fired_ordinary, counts.n_massive > 0
    n_ordinary = counts.n_rest - counts.n_massive
    return [
        Figure(
            "l0",
            "L0",
            counts.mean_l0(),
            "Mean number of latents that fire on a row.",
            with_bos=counts.mean_l0_all(),
            without_massive=counts.mean_l0_ordinary() if massive else None,
            terminal=True,
            before_after=True,
            sweep=True,
        ),
        Figure(
            "dead",
            "dead latents",
            dead,
            f"Latents that fire on none of the {counts.n_rest:,} rows excluding position 0 (the twins: on none of all "
            "rows, on none of the ordinary rows).",
            "integer",
            with_bos=int((fired_all == 0).sum()),
            without_massive=int((fired_ordinary == 0).sum()) if massive else None,
            better="lower",
            short="dead",
            terminal=True,
            before_after=True,
            sweep=True,
        ),
        Figure(
            "ultra_dense",
            "ultra-dense latents",
            dense,
            f"Latents that fire on more than {config.dense_above:.0%} of the rows.",
            "integer",
            with_bos=int((fired_all / max(1, counts.n_all) > config.dense_above).sum()),
            without_massive=int((fired_ordinary / max(1, n_ordinary) > config.dense_above).sum()) if massive else None,
            better="lower",
        ),
    ]


def _concentration(outliers: SiteOutliers) -> list[Figure]:
    return [
        Figure(
            "outlying_share",
            "variance in outlying dimensions",
            outliers.dimensions_share,
            "Share of the target's variance (excluding position 0, in the cache under analysis) in dimensions whose "
            "root mean square is at least 10 times the median dimension's. Where it is large, the FVU is mostly about "
            "them.",
            "percent",
        ),
        Figure(
            "massive_share",
            "variance in massive rows",
            outliers.share_of_variance,
            "Share of that variance in massive rows: rows whose norm exceeds 3 times the median.",
            "percent",
        ),
    ]


def _cosines(decoder: Decoder) -> list[Figure]:
    found = [
        Figure(
            "mean_max_cosine",
            "mean nearest decoder cosine",
            decoder.mean_max_cosine,
            "Mean over latents of the largest cosine of a decoder row with another one.",
            null=decoder.mean_max_cosine_random,
            better="lower",
            short="nearest cosine",
            before_after=True,
            sweep=True,
        )
    ]
    if decoder.alignment is not None:
        found.append(
            Figure(
                "encoder_decoder_cosine",
                "mean encoder–decoder cosine",
                float(decoder.alignment.mean()),
                "Mean cosine of a latent's encoder row and its decoder row (SAEs).",
                null=0.0,
                in_summary=False,
            )
        )
    return found


def columns(subject: Subject, decoder: Decoder, prefixes: Sequence[int]) -> list[Column]:
    """Nested group, nearest cosine, decoder norm and alignment of each latent."""
    cosine = decoder.geometry.max_cos
    found = [
        Column("cosine", "nearest cosine", "Largest cosine of its decoder row with another one.", cosine, shown=False),
        Column(
            "norm",
            "decoder norm",
            "Length of its decoder row in the coder's normalised space.",
            decoder.norms,
            shown=False,
        ),
    ]
    if decoder.alignment is not None:
        text = "Cosine of its encoder row and its decoder row."
        found.append(Column("alignment", "enc·dec", text, decoder.alignment, shown=False))
    if len(prefixes) > 1:
        group = np.searchsorted(prefixes, np.arange(subject.n_latents), side="right") + 1
        text = "Nested group of the dictionary; 1 is the innermost."
        found.insert(0, Column("group", "group", text, group, "integer"))
    return found


def _dead_and_dense(counts: Counts, config: ReconstructionConfig) -> tuple[int, int]:
    """Numbers of dead and of ultra-dense latents, excluding position 0."""
    fired = counts.fired_rest
    dense = fired / max(1, counts.n_rest) > config.dense_above
    return int((fired == 0).sum()), int(dense.sum())


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


DEFINITIONS = [
    (
        "FVU",
        "Σ‖y − ŷ‖² / Σ‖y − ȳ‖² in float64. ȳ is the mean of each dimension in the training cache (if that is not "
        "found, in the cache under analysis): over its rows excluding position 0 for the figure, over all its rows for "
        "the twin that includes position 0. Of a coder of several sites, each site's squares are divided by its "
        "mean variance per dimension first, so that all sites count alike.",
    ),
    (
        "Massive rows",
        "Rows excluding position 0 whose norm exceeds 3 times the median at their site and, where the site has "
        "outlying dimensions, whose largest number lies in one of them. The FVU excluding them excludes those of the "
        "target, ȳ the mean of its other rows; figures about codes exclude those of the source too.",
    ),
    ("Dead", "A latent that never fired on the rows of this report. On few rows many latents look dead."),
    ("Untrained control", "The run's coder as it was before the first training step, on the same rows."),
    (
        "Cosines",
        "Of rows in the coder's normalised space, as training sees them: after what `normalise` does to each side.",
    ),
    ("Random directions", "The null of cosines: as many random unit vectors in as many dimensions."),
]
