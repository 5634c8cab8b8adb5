"""Sparse probing: how well one, two or five latents predict a label, beside the dense probe of the activations."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np

from ...probes.intervals import over_items
from ...probes.labelled_rows import LabelSample, SampledCodes, labelled
from ...probes.labels import family_of
from ...result import Chart, Figure, ReportResult, Series, Table, TableColumn, significant
from ...stream.batches import StreamBatch
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .config import ProbingConfig
from .sparse_probes import SparseProbe, family_means, sparse_probes


class ProbingReport(Report[ProbingConfig]):
    """Collects the codes of sampled rows; everything else is computed in finalise."""

    config_class: ClassVar[type[ReportConfig]] = ProbingConfig
    title: ClassVar[str] = "Sparse probing"

    def __init__(self, config: ProbingConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        self.sample = LabelSample(
            rows=config.rows,
            families=config.families,
            splits=1,
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
        subject = self.subject
        found = labelled(subject.cache, subject.target, self.sample)
        split, dense = found.splits[0]
        ks = tuple(k for k in sorted(set(self.config.ks)) if k <= subject.n_latents)
        probes = sparse_probes(self.codes.matrix(), found.labels, split, dense, ks)
        means = family_means(probes, "auc")
        figures = _figures(probes, ks, subject.seed)
        return ReportResult(
            "probing",
            self.title,
            _lead(figures, ks, len(found.rows), len(probes), subject.coder.is_transcoder),
            figures,
            [_chart(means, ks)],
            [_table(probes, ks)],
            data={
                "rows": len(found.rows),
                "left_out": list(found.left_out),
                "family_auc": means,
                "family_f1": family_means(probes, "f1"),
                "labels": [probe.to_dict() for probe in probes],
            },
            definitions=_DEFINITIONS,
        )


def _figures(probes: list[SparseProbe], ks: tuple[int, ...], seed: int) -> list[Figure]:
    rng = np.random.default_rng(seed)
    figures = []
    for k in ks:
        value = over_items([probe.scores[k].auc for probe in probes], rng)
        figures.append(
            Figure(
                f"probing_auc_{k}",
                f"sparse probing AUC, k = {k}",
                value.value,
                f"Mean over {len(probes)} labels of the area under the ROC curve of a probe of {k} latents, "
                "held-out rows. 0.5 is chance.",
                null=0.5,
                better="higher",
                short=f"probing k={k}",
                interval=(value.low, value.high),
                sweep=True,
            )
        )
    figures.append(
        Figure(
            "probing_auc_dense",
            "dense probing AUC",
            float(np.mean([probe.dense.auc for probe in probes])),
            "The same for a linear probe of all dimensions of the activations: the upper reference.",
            null=0.5,
            short="dense probe",
            sweep=True,
        )
    )
    return figures


def _lead(figures: list[Figure], ks: tuple[int, ...], rows: int, labels: int, transcoder: bool) -> str:
    """The figures in a sentence: those of ks, then the dense one."""
    *sparse, dense = (significant(figure.value) for figure in figures)
    by_k = ", ".join(f"{value} for k = {k}" for k, value in zip(ks, sparse, strict=True))
    where = " Labels and probes are at the transcoder's target site." if transcoder else ""
    return (
        f"One probe of k latents per label, {labels} labels, {rows:,} rows: mean AUC {by_k}; the dense probe reaches "
        f"{dense}.{where}"
    )


def _chart(means: dict[str, dict[str, float]], ks: tuple[int, ...]) -> Chart:
    families = list(means)
    roles: tuple[Literal["data", "with_bos", "null", "reference"], ...] = ("data", "with_bos", "reference")
    series = [
        Series(f"k = {k}", [means[family][str(k)] for family in families], roles[min(place, 2)])
        for place, k in enumerate(ks)
    ]
    series.append(Series("dense probe", [means[family]["dense"] for family in families], "null"))
    return Chart(
        "probing_by_family",
        "Sparse probing by family of labels",
        "Mean area under the ROC curve over a family's labels, held-out rows. 0.5 is chance.",
        families,
        series,
        "family",
        "AUC",
    )


def _table(probes: list[SparseProbe], ks: tuple[int, ...]) -> Table:
    columns = [TableColumn("label", "text"), TableColumn("family", "text")]
    columns += [TableColumn(f"AUC k={k}", "number") for k in ks]
    columns += [TableColumn("AUC dense", "number")]
    columns += [TableColumn(f"F1 k={k}", "number") for k in ks]
    columns += [
        TableColumn("F1 dense", "number"),
        TableColumn("positives", "integer"),
        TableColumn("latents", "latents"),
    ]
    rows = [
        [
            probe.label,
            family_of(probe.label),
            *(probe.scores[k].auc for k in ks),
            probe.dense.auc,
            *(probe.scores[k].f1 for k in ks),
            probe.dense.f1,
            probe.dense.positives,
            list(probe.latents),
        ]
        for probe in probes
    ]
    return Table(
        "probing_labels",
        "Labels",
        "Held-out rows. Thresholds are tuned for F1 on other held-out rows.",
        columns,
        rows,
        len(rows),
    )


_DEFINITIONS = [
    (
        "Sparse probing",
        "A logistic regression on the k latents whose mean differs most between rows with and without the label "
        "(arXiv 2305.01610). Scores are on documents that neither the choice nor the fit has seen.",
    )
]
