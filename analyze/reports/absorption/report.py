"""Absorption and feature splitting, for every family of labels that the activations represent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from ...probes.intervals import Estimate
from ...probes.labelled_rows import LabelSample, SampledCodes, labelled
from ...result import Figure, ReportResult, significant
from ...stream.batches import StreamBatch
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .config import AbsorptionConfig
from .outcome import FamilyAbsorption, Gates
from .rates import absorption_rates, unit_codes
from .tables import charts, columns, family_table, interval_text, label_table, letter_table


class AbsorptionReport(Report[AbsorptionConfig]):
    """Collects the codes of sampled rows; everything else is computed in finalise."""

    config_class: ClassVar[type[ReportConfig]] = AbsorptionConfig
    title: ClassVar[str] = "Absorption and splitting"

    def __init__(self, config: AbsorptionConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        self.sample = LabelSample(
            rows=config.rows,
            families=config.families,
            splits=config.splits,
            min_positives=config.min_positives,
            seed=subject.seed,
            shards=subject.shards,
            heldout=subject.heldout,
        )
        self.codes = SampledCodes(subject.cache, self.sample)

    def update(self, batch: StreamBatch) -> None:
        self.codes.update(batch)

    def merge(self, other: Self) -> None:
        self.codes.merge(other.codes)

    def finalise(self) -> ReportResult:
        config, subject = self.config, self.subject
        found = labelled(subject.cache, subject.target, self.sample)
        gates = Gates(
            probe_f1=config.min_probe_f1,
            true_positives=config.min_true_positives,
            labels={"first_letter": config.min_letters},
            coder_mcc=config.min_main_mcc,
            coder_share_of_a=config.min_main_share,
        )
        families = absorption_rates(
            found.x,
            unit_codes(self.codes.matrix(), subject.raw_w_dec),
            subject.raw_w_dec,
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
            charts(labels),
            [
                family_table(families),
                *letter_table(families, found.positives, config.min_positives),
                label_table(labels),
            ],
            columns(labels, subject.n_latents),
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


def _lead(families: Sequence[FamilyAbsorption], rows: int, adapted: bool) -> str:
    good = [family for family in families if family.evaluable]
    bad = [family for family in families if not family.evaluable]
    form = " Adapted form: the probes read the transcoder's target site." if adapted else ""
    parts = []
    if good:
        rates = ", ".join(f"{family.family} {_percent(family.full)}" for family in good)
        parts.append(f"Full absorption on {rows:,} rows: {rates}.")
    if bad:
        parts.append(f"Not evaluable: {', '.join(family.family for family in bad)} (the table says why).")
    return " ".join(parts) + form


def _figures(families: Sequence[FamilyAbsorption]) -> list[Figure]:
    figures = []
    for family in families:
        full, fraction = family.full, family.fraction
        reason = "" if full else f" Not evaluable: {family.reason}."
        figures.append(
            Figure(
                f"absorption_{family.family}",
                f"absorption, {family.family}",
                full.value if full else None,
                "Share of the labels' true positives on which no main latent fires and one other latent carries at "
                f"least 40 % of the projection on the probe; mean over labels.{reason}",
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
                "Mean share of the projection on the probe that up to three other latents carry.",
                "percent",
                better="lower",
                in_summary=False,
            )
        )
    return figures


def _percent(value: Estimate | None) -> str:
    return "–" if value is None else f"{significant(100 * value.value)} % ({interval_text(value)})"


_DEFINITIONS: list[tuple[str, str]] = [
    (
        "Main latents",
        "The latents that represent a label: ranked by the positive weights of an L1-regularised probe, one more while "
        "that raises F1 by more than 0.03 (arXiv 2409.14507).",
    ),
    (
        "Absorption",
        "On true positives of the label's dense probe p: full if every main latent is silent and one other latent with "
        "cosine ≥ 0.025 carries at least 40 % of the projection on p. The fraction is the share that up to three other "
        "latents with cosine ≥ 0.1 carry. An absorber frequent enough to raise F1 by 0.03 counts as a main latent, so "
        "full absorption is a lower bound; with only the first main latent it is an upper bound.",
    ),
]
