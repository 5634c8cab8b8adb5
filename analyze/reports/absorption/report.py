"""Absorption and feature splitting, for every family of labels that the activations represent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from ...probes.intervals import Estimate
from ...probes.labelled_rows import Sample, SampledCodes, labelled
from ...result import Chart, Column, Figure, ReportResult, Series, Table, TableColumn, significant
from ...stream.batches import StreamBatch
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .main_latents import F1_JUMP, MAX_K
from .rates import FamilyAbsorption, Gates, LabelAbsorption, absorption_rates, unit_codes

LISTED = 100
"""Labels in the table of labels; report data has all."""


@dataclass(frozen=True, kw_only=True)
class AbsorptionConfig(ReportConfig):
    """How much of a label's direction other latents have taken over."""

    kind: Literal["absorption"] = "absorption"
    families: tuple[str, ...] | None = None
    """Families of labels; null: all that the cache can have (of a cache of prompts: the prompts' own)."""
    rows: int = 20_000
    """Rows to sample."""
    splits: int = 3
    """Splits into rows to learn from and rows to score; true positives are pooled."""
    min_positives: int = 50
    """A label needs so many positive and negative rows in the sample."""
    min_probe_f1: float = 0.6
    """A label counts if its dense probe exceeds this F1 on held-out rows …"""
    min_true_positives: int = 10
    """… and rightly says yes to so many of them."""
    min_letters: int = 20
    """The first-letter family is evaluable with so many letters; other families with one label."""
    min_main_mcc: float = 0.3
    """The probe of a label's main latents needs this Matthews correlation: else the coder has no latents for the label,
    and it does not count. −1: not asked, as published."""
    origin: Literal["zero", "mean"] = "zero"
    """What a row's projection on the probe is measured from: the zero vector (as published), or the site's mean."""
    l1: float = 0.01
    """Penalty of the probe that ranks the latents, on codes with a mean active value of 1."""
    max_k: int = MAX_K
    """Latents that a label may be split over, at most."""
    f1_jump: float = F1_JUMP
    """A label is split over one more latent while that raises F1 by more than this."""

    def __post_init__(self) -> None:
        if self.rows < 100 or self.splits < 1 or self.min_positives < 2 or self.max_k < 1:
            raise ValueError("rows is at least 100, splits and max_k at least 1, min_positives at least 2")


class Absorption(Report[AbsorptionConfig]):
    """Codes of sampled rows; everything else happens at the end."""

    config_class: ClassVar[type[ReportConfig]] = AbsorptionConfig
    title: ClassVar[str] = "Absorption and splitting"
    by_default: ClassVar[bool] = False

    def __init__(self, config: AbsorptionConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        self.sample = Sample(
            config.rows,
            config.families,
            config.splits,
            config.min_positives,
            subject.seed,
            shards=subject.shards,
            heldout=subject.heldout,
        )
        self.codes = SampledCodes(subject, self.sample)

    def update(self, batch: StreamBatch) -> None:
        self.codes.update(batch)

    def merge(self, other: Self) -> None:
        self.codes.merge(other.codes)

    def finalise(self) -> ReportResult:
        config, subject = self.config, self.subject
        found = labelled(subject.cache, subject.target, self.sample)
        scale = float(subject.coder.target_scale)
        letters = {"first_letter": config.min_letters}
        gates = Gates(config.min_probe_f1, config.min_true_positives, letters, config.min_main_mcc)
        families = absorption_rates(
            found.x,
            unit_codes(self.codes.matrix(), subject.w_dec, scale),
            subject.w_dec,
            found.labels,
            found.splits,
            adapted=subject.coder.is_transcoder,
            gates=gates,
            origin=None if config.origin == "zero" else subject.cache.stats(subject.target).rest.mean,
            l1=config.l1,
            max_k=config.max_k,
            jump=config.f1_jump,
            seed=subject.seed,
        )
        labels = [label for family in families for label in family.labels]
        return ReportResult(
            "absorption",
            self.title,
            _lead(families, len(found.rows), subject.coder.is_transcoder),
            _figures(families),
            _charts(labels),
            [_family_table(families), _label_table(labels)],
            _columns(labels, subject.n_latents),
            {
                "rows": len(found.rows),
                "splits": config.splits,
                "form": "adapted" if subject.coder.is_transcoder else "SAE",
                "origin": config.origin,
                "left_out": list(found.left_out),
                "families": [family.to_dict() for family in families],
            },
            definitions=_DEFINITIONS,
        )


def _lead(families: list[FamilyAbsorption], rows: int, adapted: bool) -> str:
    good = [family for family in families if family.evaluable]
    bad = [family for family in families if not family.evaluable]
    form = " Adapted form: the probes read the site that the transcoder writes to." if adapted else ""
    parts = []
    if good:
        rates = ", ".join(f"{family.family} {_percent(family.full)}" for family in good)
        parts.append(f"Full absorption on {rows:,} rows: {rates}.")
    if bad:
        parts.append(f"Not evaluable: {', '.join(family.family for family in bad)} (the table says why).")
    return " ".join(parts) + form


def _figures(families: list[FamilyAbsorption]) -> list[Figure]:
    figures = []
    for family in families:
        full, fraction = family.full, family.fraction
        interval = f" 95 % interval {_interval(full)}." if full else f" Not evaluable: {family.reason}."
        figures.append(
            Figure(
                f"absorption_{family.family}",
                f"absorption, {family.family}",
                full.value if full else None,
                "Share of the labels' true positives on which no main latent fires and another latent carries at least "
                f"40 % of the probe's direction; mean over labels.{interval}",
                "percent",
                better="lower",
                interval=(full.low, full.high) if full else None,
                sweep=True,
            )
        )
        figures.append(
            Figure(
                f"absorption_fraction_{family.family}",
                f"absorption fraction, {family.family}",
                fraction.value if fraction else None,
                "Mean share of the probe's direction that up to three other latents carry.",
                "percent",
                better="lower",
                in_summary=False,
            )
        )
    return figures


def _charts(labels: list[LabelAbsorption]) -> list[Chart]:
    shown = [label for label in labels if label.full is not None][:40]
    if not shown:
        return []
    return [
        Chart(
            "absorption_by_label",
            "Absorption by label",
            "Labels whose dense probe passes the gate. Upper bound: only the first main latent counts as one, so that "
            "feature splits count as absorption too.",
            [label.label for label in shown],
            [
                Series("full", [label.full.value if label.full else None for label in shown]),
                Series("fraction", [label.fraction.value if label.fraction else None for label in shown], "reference"),
                Series(
                    "upper bound", [label.full_first.value if label.full_first else None for label in shown], "null"
                ),
            ],
            "label",
            "share of true positives",
        )
    ]


def _family_table(families: list[FamilyAbsorption]) -> Table:
    rows = [
        [
            family.family,
            family.status,
            family.full.value if family.full else None,
            _interval(family.full),
            family.fraction.value if family.fraction else None,
            _interval(family.fraction),
            family.full_first.value if family.full_first else None,
            family.mean_main_latents,
            f"{family.n_probed} of {len(family.labels)}",
            family.n_evaluable,
            family.true_positives,
            family.reason,
        ]
        for family in families
    ]
    return Table(
        "absorption_families",
        "Families of labels",
        "Means over the labels that count. What the activations do not say, or the coder has no latents for, gets no "
        "rate: an untrained coder would get 0.",
        [
            TableColumn("family", "text"),
            TableColumn("status", "text"),
            TableColumn("full", "percent", "No main latent fires, another one stands in."),
            TableColumn("95 %", "text"),
            TableColumn("fraction", "percent", "Share of the direction that other latents carry."),
            TableColumn("95 %", "text"),
            TableColumn("upper bound", "percent", "Full absorption if only the first main latent counts as one."),
            TableColumn("main latents", "number", "Mean per label; more than 1 is feature splitting."),
            TableColumn("labels", "text", "Labels whose dense probe passes the gate."),
            TableColumn(
                "with latents", "integer", "Of those, labels that the coder has latents for: the ones that count."
            ),
            TableColumn("true positives", "integer"),
            TableColumn("why not", "remark"),
        ],
        rows,
        len(rows),
    )


def _label_table(labels: list[LabelAbsorption]) -> Table:
    ordered = sorted(labels, key=lambda label: -(label.full.value if label.full else -1))
    rows = [
        [
            label.label,
            label.full.value if label.full else None,
            _interval(label.full),
            label.fraction.value if label.fraction else None,
            label.full_first.value if label.full_first else None,
            label.main_silent,
            label.true_positives,
            label.probe.f1,
            label.sparse.f1 if label.sparse else None,
            list(label.main_latents),
            [absorber.latent for absorber in label.absorbers[:5]],
            label.positive_projection,
            "" if label.evaluable else label.status,
        ]
        for label in ordered[:LISTED]
    ]
    return Table(
        "absorption_labels",
        "Labels",
        "One line per label, most absorbed first. Latents and probe scores are those of the first split.",
        [
            TableColumn("label", "text"),
            TableColumn("full", "percent"),
            TableColumn("95 %", "text"),
            TableColumn("fraction", "percent"),
            TableColumn("upper bound", "percent"),
            TableColumn(
                "main silent", "percent", "True positives on which no main latent fires, absorbed or just missed."
            ),
            TableColumn("true positives", "integer"),
            TableColumn("probe F1", "number", "Dense probe, held-out rows."),
            TableColumn("main F1", "number", "Probe of the main latents alone, held-out rows."),
            TableColumn("main latents", "latents"),
            TableColumn("stand in", "latents", "Latents that absorb, most rows first."),
            TableColumn("a > 0", "percent", "True positives on the probe's side; only there can absorption be seen."),
            TableColumn("why not", "remark"),
        ],
        rows,
        len(ordered),
        "report.json, data.families",
    )


def _columns(labels: list[LabelAbsorption], n_latents: int) -> list[Column]:
    main: dict[int, list[str]] = {}
    absorbs: Counter[int] = Counter()
    for label in labels:
        if not label.evaluable:
            continue
        for latent in label.main_latents:
            main.setdefault(latent, []).append(label.label)
        for absorber in label.absorbers:
            absorbs[absorber.latent] += absorber.rows
    counts = np.zeros(n_latents, np.int64)
    counts[list(absorbs)] = list(absorbs.values())
    return [
        Column(
            "main_of",
            "label",
            "Labels that this latent is a main latent of.",
            [", ".join(main.get(latent, ())) for latent in range(n_latents)],
            "text",
            shown=False,
            without="none",
        ),
        Column(
            "absorbs",
            "absorbs",
            "True positives on which it stands in for silent main latents.",
            counts,
            "integer",
            shown=False,
        ),
    ]


def _interval(value: Estimate | None) -> str:
    return "" if value is None else f"{significant(100 * value.low)}–{significant(100 * value.high)} %"


def _percent(value: Estimate | None) -> str:
    return "–" if value is None else f"{significant(100 * value.value)} % ({_interval(value)})"


_DEFINITIONS: list[tuple[str, str]] = [
    (
        "Main latents",
        "The latents that say a label: ranked by the positive weights of an L1-regularised probe, one more while that "
        "raises F1 by more than 0.03 (arXiv 2409.14507).",
    ),
    (
        "Absorption",
        "On true positives of the label's dense probe p: full if every main latent is silent and one other latent with "
        "cosine ≥ 0.025 carries at least 40 % of the projection on p; the fraction is what up to three other latents "
        "with cosine ≥ 0.1 carry. An absorber frequent enough to raise F1 by 0.03 is counted as a split, so full "
        "absorption is a lower bound; with only the first main latent it is an upper one.",
    ),
]
