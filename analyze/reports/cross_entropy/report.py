"""Cross-entropy: the language model's loss when the coder's reconstruction replaces its target.

Loss recovered = (CE_zero − CE_coder) / (CE_zero − CE_clean): 1 for a perfect reconstruction, 0 for a site set to zero.
The site's mean is the fairer floor, and has a figure of its own. Position 0 (every BOS) keeps its activations, and its
prediction is not counted; the twin with position 0 replaces it too and counts it. In the twin without massive rows,
they keep their activations as well, and their predictions do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ....models.sequences import choose_sequences
from ....models.splice import Replace, by_reconstruction, by_zero
from ....models.spliced_loss import Loss, losses
from ...result import Figure, ReportResult, Table, TableColumn, significant
from ...stream.batches import StreamBatch
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .config import CrossEntropyConfig
from .model import model_of

IN_PLACE = {"clean": "the model as it is", "coder": "the coder", "mean": "the mean", "zero": "zero"}
"""What is at the target site, and its name in the table of losses."""

VARIANTS = ("", "_all", "_ordinary")
"""Ends of the names of one replacement's losses (models/spliced_loss.py): which rows keep their activations."""


class CrossEntropyReport(Report[CrossEntropyConfig]):
    """Reads nothing from the stream; finalise runs the model."""

    config_class: ClassVar[type[ReportConfig]] = CrossEntropyConfig
    title: ClassVar[str] = "Cross-entropy"
    together: ClassVar[bool] = True

    @classmethod
    def lacks(cls, subject: Subject) -> str | None:
        if subject.coder.n_sources == subject.coder.n_targets == 1:
            return None
        return "one site of the model is replaced, and this coder has several"

    def update(self, batch: StreamBatch) -> None:
        """The model needs whole sequences of tokens, not codes."""

    def merge(self, other: Self) -> None:
        """Nothing was collected."""

    def finalise(self) -> ReportResult:
        (result,) = self.finalise_all([self])
        return result

    @classmethod
    def finalise_all(cls, reports: Sequence[Self]) -> list[ReportResult]:
        """The model runs once as it is, with zero and with the mean for all coders between the same two sites."""
        first = reports[0]  # all are of one cache and one setting
        sequences = choose_sequences(
            first.subject.cache, first.subject.shards, first.config.sequences, first.subject.only
        )
        found: dict[int, dict[str, Loss]] = {}
        sites = [(report.subject.source, report.subject.target) for report in reports]
        for pair in dict.fromkeys(sites):
            of_pair = {place: reports[place] for place, sites_of in enumerate(sites) if sites_of == pair}
            found |= _losses(of_pair, sequences)
        return [report._result(found[place], len(sequences)) for place, report in enumerate(reports)]

    def _result(self, found: Mapping[str, Loss], sequences: int) -> ReportResult:
        means = {name: _means(found, name) for name in IN_PLACE}
        tokens = int(found["clean"].tokens[1:].sum())
        table = _table(means)
        return ReportResult(
            "cross_entropy",
            self.title,
            _lead(means, self.subject.target),
            _figures(means, f"over {tokens:,} predictions in {sequences:,} sequences"),
            tables=[table],
            data={
                "sequences": sequences,
                "predictions": tokens,
                "losses": {row[0]: row[1:] for row in table.rows},
            },
            definitions=_DEFINITIONS,
        )


def _losses(reports: Mapping[int, CrossEntropyReport], sequences: NDArray[np.int64]) -> dict[int, dict[str, Loss]]:
    """For each report, whose coders share source and target, the losses of what is IN_PLACE and their variants."""
    first = next(iter(reports.values()))
    subject = first.subject
    stats = subject.cache.stats(subject.target)
    mean = torch.from_numpy(stats.rest.mean).float().to(subject.device)
    floors: dict[str, Replace] = {
        "zero": by_zero,
        "mean": lambda _, y: mean.to(y.dtype).expand_as(y),
    }
    found = losses(
        model_of(subject.cache, subject.device),
        subject.cache,
        sequences,
        source=subject.source,
        target=subject.target,
        batch=first.config.batch,
        replacements={f"coder {place}": by_reconstruction(report.subject.coder) for place, report in reports.items()}
        | floors,
        only=subject.only,
        massive=subject.massive if subject.massive.reshape(-1, subject.n_positions)[sequences].any() else None,
    )
    common = {name: loss for name, loss in found.items() if not name.startswith("coder ")}
    return {
        place: common
        | {f"coder{variant}": found[key] for variant in VARIANTS if (key := f"coder {place}{variant}") in found}
        for place in reports
    }


@dataclass(frozen=True)
class _Means:
    """Mean cross-entropy and KL in nats per prediction; None without predictions. `_all`: including position 0.
    `_ordinary`: excluding position 0 and massive rows; None where there are none."""

    ce: float | None
    kl: float | None
    ce_all: float | None
    kl_all: float | None
    ce_ordinary: float | None
    kl_ordinary: float | None


def _means(found: Mapping[str, Loss], name: str) -> _Means:
    ordinary = found.get(f"{name}_ordinary")
    ce_ordinary = ordinary.mean("ce", 1) if ordinary else None
    if name == "clean":  # one run serves both: nothing is replaced, only the predictions that count differ
        return _Means(found[name].mean("ce", 1), 0.0, found[name].mean("ce", 0), 0.0, ce_ordinary, 0.0)
    rest, everything = found[name], found[f"{name}_all"]
    kl_ordinary = ordinary.mean("kl", 1) if ordinary else None
    return _Means(
        rest.mean("ce", 1),
        rest.mean("kl", 1),
        everything.mean("ce", 0),
        everything.mean("kl", 0),
        ce_ordinary,
        kl_ordinary,
    )


def _figures(means: Mapping[str, _Means], over: str) -> list[Figure]:
    clean, coder, zero, mean = (means[name] for name in ("clean", "coder", "zero", "mean"))
    return [
        Figure(
            "ce_recovered",
            "loss recovered (against zero)",
            _recovered(clean=clean.ce, floor=zero.ce, coder=coder.ce),
            f"(CE_zero − CE_coder) / (CE_zero − CE_clean) {over}. 1: the loss does not change; 0: as bad as setting "
            "the site to zero.",
            "percent",
            with_bos=_recovered(clean=clean.ce_all, floor=zero.ce_all, coder=coder.ce_all),
            without_massive=_recovered(clean=clean.ce_ordinary, floor=zero.ce_ordinary, coder=coder.ce_ordinary),
            null=0.0,
            better="higher",
            short="loss recovered",
            terminal=True,
            sweep=True,
        ),
        Figure(
            "ce_recovered_mean",
            "loss recovered (against the mean)",
            _recovered(clean=clean.ce, floor=mean.ce, coder=coder.ce),
            "The same with the site's mean as the floor. Below 0 the coder does more harm than the mean of its target.",
            "percent",
            with_bos=_recovered(clean=clean.ce_all, floor=mean.ce_all, coder=coder.ce_all),
            without_massive=_recovered(clean=clean.ce_ordinary, floor=mean.ce_ordinary, coder=coder.ce_ordinary),
            null=0.0,
            better="higher",
        ),
        Figure(
            "ce_increase",
            "loss added (nats)",
            _difference(coder.ce, clean.ce),
            "Cross-entropy with the coder less that of the model as it is.",
            with_bos=_difference(coder.ce_all, clean.ce_all),
            without_massive=_difference(coder.ce_ordinary, clean.ce_ordinary),
            better="lower",
        ),
        Figure(
            "kl",
            "KL from the model as it is (nats)",
            coder.kl,
            "Mean KL(clean ‖ spliced) of the next-token distributions.",
            with_bos=coder.kl_all,
            without_massive=coder.kl_ordinary,
            better="lower",
        ),
    ]


def _recovered(*, clean: float | None, floor: float | None, coder: float | None) -> float | None:
    """(floor − coder) / (floor − clean); None where the floor does no harm, so that there is nothing to recover."""
    if clean is None or floor is None or coder is None or floor <= clean:
        return None
    return (floor - coder) / (floor - clean)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _lead(means: Mapping[str, _Means], target: str) -> str:
    loss = {name: significant(of.ce) for name, of in means.items()}
    return (
        f"With the reconstruction in place of {target} the model's loss is {loss['coder']} nats per token, against "
        f"{loss['clean']} as it is, {loss['mean']} with the mean and {loss['zero']} with zero, excluding position 0."
    )


def _table(means: Mapping[str, _Means]) -> Table:
    rows = [[IN_PLACE[name], of.ce, of.kl, of.ce_all, of.kl_all] for name, of in means.items()]
    return Table(
        "losses",
        "Losses",
        "Cross-entropy and KL in nats per token, excluding position 0 (it keeps its activations) and including it.",
        [
            TableColumn("in place of the target", "text"),
            TableColumn("cross-entropy", "number"),
            TableColumn("KL", "number"),
            TableColumn("cross-entropy, including position 0", "number"),
            TableColumn("KL, including position 0", "number"),
        ],
        rows,
        len(rows),
    )


_DEFINITIONS = [
    (
        "Loss recovered",
        "How much of the damage of removing a site the coder undoes: 1 for a perfect reconstruction, 0 for the floor. "
        "At a site that matters little it is noisy: look at the loss itself too.",
    )
]
