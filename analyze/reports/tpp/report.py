"""Targeted probe perturbation (TPP): the accuracy that a class's probe loses with the class's latents at 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ...probes.intervals import over_items
from ...probes.labels import Labels
from ...probes.texts import Ablation, MeanCodes, TextProbes, column_of, fit_texts, mean_activations, texts_of
from ...result import Chart, Figure, ReportResult, Series, Table, TableColumn, significant
from ...stream.batches import StreamBatch
from ...subject.subject import Subject
from ..base import Report, ReportConfig, of_several_sites, once_per_target
from .classes import class_documents
from .config import TppConfig
from .scores import Perturbed, effects_of, perturb

LISTED = 10
"""Latents of a class that the table lists."""


class TppReport(Report[TppConfig]):
    """Collects the mean codes of the drawn documents; everything else is computed in finalise_all."""

    config_class: ClassVar[type[ReportConfig]] = TppConfig
    title: ClassVar[str] = "Targeted probe perturbation"
    together: ClassVar[bool] = True

    @classmethod
    def lacks(cls, subject: Subject) -> str | None:
        """A coder of several sites has no one site for probes."""
        return of_several_sites(subject)

    def __init__(self, config: TppConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        texts = texts_of(subject.cache, subject.rest_rows, config.tokens)
        values = column_of(subject.cache, config.column)
        self.drawn = class_documents(texts.documents, values, config, subject.seed)
        self.codes = MeanCodes(texts.only(self.drawn.documents), subject.n_latents)

    def update(self, batch: StreamBatch) -> None:
        self.codes.update(batch)

    def merge(self, other: Self) -> None:
        self.codes.merge(other.codes)

    def finalise(self) -> ReportResult:
        (result,) = self.finalise_all([self])
        return result

    @classmethod
    def finalise_all(cls, reports: Sequence[Self]) -> list[ReportResult]:
        """Coders of one target share its mean activations and probes."""
        shared = once_per_target(reports, cls._probed)
        return [report._result(*probed) for report, probed in zip(reports, shared, strict=True)]

    def _probed(self) -> tuple[Tensor, TextProbes]:
        """(mean activations [D, d], the probes of the classes on those that fit)."""
        x = mean_activations(self.subject.cache, self.subject.target, self.codes.texts)
        member = self.drawn.of_class[:, None] == np.arange(len(self.drawn.names))
        return x, fit_texts(x, Labels(self.drawn.names, member.astype(np.int8)), ~self.drawn.scores)

    def _result(self, x: Tensor, probes: TextProbes) -> ReportResult:
        subject, drawn, codes = self.subject, self.drawn, self.codes.matrix()
        ns = sorted({min(n, subject.n_latents) for n in self.config.ns})
        n = min(self.config.headline, subject.n_latents)
        scored = Ablation(probes, x[torch.from_numpy(drawn.scores)], codes[drawn.scores], subject.raw_w_dec)
        effects = effects_of(codes[~drawn.scores], drawn.of_class[~drawn.scores], scored.pull)
        found = perturb(effects, scored, drawn.of_class[drawn.scores], ns)
        figures = _figures(found, n, int(drawn.scores.sum()), subject.seed)
        return ReportResult(
            "tpp",
            self.title,
            _lead(found, n, len(drawn.documents), subject.coder.is_transcoder),
            figures,
            [_chart(found, ns)],
            [_table(found, drawn.names, n)],
            data={
                "classes": list(drawn.names),
                "documents": len(drawn.documents),
                "rows": len(self.codes.texts.rows),
                "scored": int(drawn.scores.sum()),
                "accuracy": found.clean,
                "latents": [own[: max(ns)] for own in found.latents],
                "after": {str(n): found.after[n] for n in ns},
                "scores": {str(n): float(found.score(n).mean()) for n in ns},
            },
            definitions=_DEFINITIONS,
        )


def _figures(found: Perturbed, n: int, scored: int, seed: int) -> list[Figure]:
    whole = over_items(found.score(n), np.random.default_rng(seed))
    own, other = float(found.intended(n).mean()), float(found.unintended(n).mean())
    of = f"mean over {len(found.clean)} classes, {scored:,} documents that no probe was fitted on"
    return [
        Figure(
            "tpp",
            f"TPP, {n} latents",
            whole.value,
            f"Accuracy that a class's own probe loses with its {n} strongest latents at 0, less what the probes of the "
            f"other classes lose; {of}.",
            null=0.0,
            better="higher",
            short="TPP",
            interval=(whole.low, whole.high),
            sweep=True,
        ),
        Figure("tpp_intended", "accuracy lost by the class's own probe", own, f"The first part of TPP; {of}."),
        Figure(
            "tpp_unintended",
            "accuracy lost by the other probes",
            other,
            f"The second part of TPP; {of}.",
            better="lower",
        ),
        Figure(
            "tpp_accuracy",
            "accuracy of the probes",
            float(found.clean.mean()),
            f"Of dense probes of a document's mean activation, nothing set to 0; {of}. TPP is at most this less 0.5.",
            null=0.5,
        ),
    ]


def _lead(found: Perturbed, n: int, documents: int, transcoder: bool) -> str:
    own, other = float(found.intended(n).mean()), float(found.unintended(n).mean())
    where = " The probes are at the transcoder's target site." if transcoder else ""
    return (
        f"With the {n} strongest latents of a class at 0, the probe of that class loses {significant(own)} of its "
        f"accuracy of {significant(float(found.clean.mean()))}, those of the other classes {significant(other)}: TPP "
        f"{significant(own - other)} ({len(found.clean)} classes, {documents:,} documents).{where}"
    )


def _chart(found: Perturbed, ns: Sequence[int]) -> Chart:
    return Chart(
        "tpp",
        "Accuracy lost over latents at 0",
        "Mean over classes of the accuracy that probes lose when the strongest latents of a class are set to 0.",
        [str(n) for n in ns],
        [
            Series("the class's own probe", [float(found.intended(n).mean()) for n in ns]),
            Series("probes of the other classes", [float(found.unintended(n).mean()) for n in ns], "null"),
        ],
        "latents at 0",
        "accuracy lost",
    )


def _table(found: Perturbed, names: Sequence[str], n: int) -> Table:
    columns = [
        TableColumn("class", "text"),
        TableColumn("accuracy", "number", "Of its probe, on documents that it was not fitted on; 0.5 is chance."),
        TableColumn("lost", "number", f"What its probe loses with the class's {n} strongest latents at 0."),
        TableColumn("others lost", "number", "What the probes of the other classes lose on average."),
        TableColumn("TPP", "number", "The difference."),
        TableColumn("latents", "latents", f"The strongest, at most {LISTED}."),
    ]
    parts = zip(names, found.clean, found.intended(n), found.unintended(n), found.score(n), found.latents, strict=True)
    rows = [[*numbers, latents[: min(n, LISTED)].tolist()] for *numbers, latents in parts]
    return Table("tpp_classes", "Classes", f"Each with its own {n} strongest latents at 0.", columns, rows, len(rows))


_DEFINITIONS = [
    (
        "Targeted probe perturbation (TPP)",
        "Sets the latents that a class's probe depends on most to 0 and compares how much accuracy the probe of that "
        "class loses with how much the probes of other classes lose (SAEBench, arXiv 2503.09532). High where classes "
        "lie in latents of their own. Dense probes of the mean activation of each document.",
    )
]
