"""Spurious correlation removal (SCR): a probe that confuses two labels, cured of one by setting its latents to 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ....shared.errors import UsageError
from ...probes.intervals import over_items
from ...probes.labels import Labels
from ...probes.texts import (
    Ablation,
    MeanCodes,
    TextProbes,
    column_of,
    columns_of,
    fit_texts,
    mean_activations,
    texts_of,
)
from ...result import Chart, Figure, ReportResult, Series, Table, TableColumn, significant
from ...stream.batches import StreamBatch
from ...subject.subject import Subject
from ..base import Report, ReportConfig, of_several_sites, once_per_target
from .combinations import PairDocuments, pair_documents
from .config import ScrConfig
from .scores import Direction, Removed, effects_of, remove

LISTED = 10
"""Latents that the table lists."""

SETS = ("first label", "second label", "both labels")


class ScrReport(Report[ScrConfig]):
    """Collects the mean codes of the drawn documents; everything else is computed in finalise_all."""

    config_class: ClassVar[type[ReportConfig]] = ScrConfig
    title: ClassVar[str] = "Spurious correlation removal"
    together: ClassVar[bool] = True

    @classmethod
    def lacks(cls, subject: Subject) -> str | None:
        """A coder of several sites has no one site for probes."""
        return of_several_sites(subject)

    def __init__(self, config: ScrConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        texts = texts_of(subject.cache, subject.rest_rows, config.tokens)
        self.columns = config.columns or _two_columns(subject)
        first, second = (column_of(subject.cache, name) for name in self.columns)
        self.pairs = pair_documents(texts.documents, first, second, config, subject.seed)
        drawn = np.unique(np.concatenate([pair.documents for pair in self.pairs]))
        self.codes = MeanCodes(texts.only(drawn), subject.n_latents)

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

    def _probed(self) -> tuple[Tensor, list[TextProbes]]:
        """(mean activations [D, d] of all drawn documents, each pair's probes of either label and of both at once)."""
        x = mean_activations(self.subject.cache, self.subject.target, self.codes.texts)
        return x, [fit_texts(x[self._places(pair)], Labels(SETS, pair.labels), ~pair.scores) for pair in self.pairs]

    def _places(self, pair: PairDocuments) -> Tensor:
        """Rows of the pair's documents among all drawn ones [D]."""
        return torch.from_numpy(np.searchsorted(self.codes.texts.documents, pair.documents))

    def _result(self, x: Tensor, probes: list[TextProbes]) -> ReportResult:
        subject, codes = self.subject, self.codes.matrix()
        ns = sorted({min(n, subject.n_latents) for n in self.config.ns})
        n = min(self.config.headline, subject.n_latents)
        found: list[Removed] = []
        for pair, own in zip(self.pairs, probes, strict=True):
            place = self._places(pair)
            inside = codes[place.numpy()]
            scored = Ablation(own, x[place][torch.from_numpy(pair.scores)], inside[pair.scores], subject.raw_w_dec)
            effects = effects_of(inside[~pair.scores], pair.labels[~pair.scores], scored.pull)
            found.append(remove(effects, scored, pair.labels[pair.scores], ns))
        where = " The probes are at the transcoder's target site." if subject.coder.is_transcoder else ""
        documents = len(self.codes.texts.documents)
        return ReportResult(
            "scr",
            self.title,
            _lead(found, n, documents) + where,
            _figures(found, n, subject.seed),
            [_chart(found, ns)],
            [_table(found, self.pairs, self.columns, n)],
            data={
                "columns": list(self.columns),
                "documents": documents,
                "rows": len(self.codes.texts.rows),
                "pairs": [_plain(pair, one) for pair, one in zip(self.pairs, found, strict=True)],
                "scores": {str(n): float(np.mean([one.chosen.score(n) for one in found])) for n in ns},
            },
            definitions=_DEFINITIONS,
        )


def _two_columns(subject: Subject) -> tuple[str, str]:
    found = columns_of(subject.cache)
    if len(found) < 2:
        raise UsageError(
            f"scr: the documents of {subject.cache.path} have {', '.join(found) or 'no label'}, expected two labels",
            "harvest with --set harvest.label_columns=[COLUMN,COLUMN], columns of the dataset",
        )
    return found[0], found[1]


def _plain(pair: PairDocuments, found: Removed) -> dict[str, Any]:
    def of(one: Direction) -> dict[str, Any]:
        after = {str(n): {"accuracy": value, "score": one.score(n)} for n, value in one.after.items()}
        return {"confused": one.confused, "clean": one.clean, "after": after, "latents": one.latents}

    return {
        "pair": list(pair.pair),
        "values": list(pair.values),
        "scored": int(pair.scores.sum()),
        "keep_first": of(found.keep_first),
        "keep_second": of(found.keep_second),
        "chosen": "first" if found.chosen is found.keep_first else "second",
    }


def _figures(found: list[Removed], n: int, seed: int) -> list[Figure]:
    chosen = [one.chosen for one in found]
    whole = over_items([one.score(n) for one in chosen], np.random.default_rng(seed))
    of = f"mean over {_pairs(found)} of values, documents that no probe was fitted on"
    return [
        Figure(
            "scr",
            f"SCR, {n} latents",
            whole.value,
            f"Share of the gap between a probe that confuses two labels and a probe of one of them that closes with "
            f"the {n} strongest latents of the other label at 0; {of}.",
            null=0.0,
            better="higher",
            short="SCR",
            interval=(whole.low, whole.high) if len(found) > 1 else None,
            sweep=True,
        ),
        Figure(
            "scr_confused",
            "accuracy of the confused probes",
            float(np.mean([one.confused for one in chosen])),
            f"On the label that is kept, nothing set to 0; {of}.",
            null=0.5,
        ),
        Figure(
            "scr_after",
            "accuracy of the confused probes, latents at 0",
            float(np.mean([one.after[n] for one in chosen])),
            f"On the label that is kept, with the {n} strongest latents of the other one at 0; {of}.",
            null=0.5,
            better="higher",
        ),
        Figure(
            "scr_clean",
            "accuracy of the label's own probes",
            float(np.mean([one.clean for one in chosen])),
            f"Fitted where the other label is balanced; {of}.",
            null=0.5,
        ),
    ]


def _pairs(found: list[Removed]) -> str:
    return f"{len(found)} pair{'' if len(found) == 1 else 's'}"


def _lead(found: list[Removed], n: int, documents: int) -> str:
    chosen = [one.chosen for one in found]
    confused, after, clean = (
        significant(float(np.mean(values)))
        for values in zip(*((one.confused, one.after[n], one.clean) for one in chosen), strict=True)
    )
    whole = significant(float(np.mean([one.score(n) for one in chosen])))
    return (
        f"Probes that learned from documents in which two labels agree are right about one of them at a rate of "
        f"{confused}, and at {after} with the {n} strongest latents of the other label at 0; a probe of the label "
        f"alone reaches {clean}: SCR {whole} ({_pairs(found)}, {documents:,} documents)."
    )


def _chart(found: list[Removed], ns: Sequence[int]) -> Chart:
    def mean(of: str) -> list[float]:
        return [float(np.mean([getattr(one, of).score(n) for one in found])) for n in ns]

    return Chart(
        "scr",
        "Gap closed over latents at 0",
        "Mean over pairs of the share of the gap that closes; 1 is all of it, below 0 the probe became worse.",
        [str(n) for n in ns],
        [
            Series("the direction that counts", mean("chosen")),
            Series("the first label kept", mean("keep_first"), "reference"),
            Series("the second label kept", mean("keep_second"), "null"),
        ],
        "latents at 0",
        "SCR",
    )


def _table(found: list[Removed], pairs: list[PairDocuments], names: tuple[str, str], n: int) -> Table:
    columns = [
        TableColumn(names[0], "text"),
        TableColumn(names[1], "text"),
        TableColumn("kept", "text", "The label on which the confused probe is worse; the other one is removed."),
        TableColumn("confused", "number", "Accuracy on the kept label of the probe that confuses both."),
        TableColumn("after", "number", f"The same with the {n} strongest latents of the other label at 0."),
        TableColumn("clean", "number", "Accuracy of a probe of the kept label."),
        TableColumn("SCR", "number", "(after − confused) / (clean − confused)."),
        TableColumn("latents", "latents", f"The other label's strongest, at most {LISTED}."),
    ]
    rows = []
    for pair, one in zip(pairs, found, strict=True):
        chosen = one.chosen
        kept = names[0] if chosen is one.keep_first else names[1]
        numbers = [chosen.confused, chosen.after[n], chosen.clean, chosen.score(n)]
        latents = chosen.latents[: min(n, LISTED)].tolist()
        rows.append([" / ".join(pair.pair), " / ".join(pair.values), kept, *numbers, latents])
    return Table("scr_pairs", "Pairs of values", "Documents that no probe was fitted on.", columns, rows, len(rows))


_DEFINITIONS = [
    (
        "Spurious correlation removal (SCR)",
        "A probe learns from documents in which two labels always agree, and confuses them. Setting the latents of one "
        "label to 0 should leave it with the other one (SAEBench, arXiv 2503.09532). High where the labels lie in "
        "latents of their own.",
    )
]
