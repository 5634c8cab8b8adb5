"""Cross-entropy: what the language model loses when the coder's reconstruction takes the place of its target.

Loss recovered = (CE_zero − CE_coder) / (CE_zero − CE_clean): 1 for a perfect reconstruction, 0 for deleting the site.
Replacing the site by its mean is the fairer floor and stands beside it. Position 0 (every BOS, where each
document of a sequence has one) is left as it is, and its prediction is not counted; the twin replaces it too and counts
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from ...result import Figure, ReportResult, Table, TableColumn, significant
from ...stream.batches import StreamBatch
from ..base import Report, ReportConfig
from .splice import Loss, Replace, choose_sequences, losses, model_of


@dataclass(frozen=True, kw_only=True)
class CrossEntropyConfig(ReportConfig):
    """The model's loss with the coder spliced in; runs the model, so it is made when named."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    sequences: int = 64
    """Sequences of the cache to run, spread evenly."""
    batch: int = 8
    """Sequences in one forward pass."""

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.batch < 1:
            raise ValueError("sequences and batch are at least 1")


class CrossEntropy(Report[CrossEntropyConfig]):
    """Looks at nothing in the pass; runs the model at the end."""

    config_class: ClassVar[type[ReportConfig]] = CrossEntropyConfig
    title: ClassVar[str] = "Cross-entropy"
    by_default: ClassVar[bool] = False

    def update(self, batch: StreamBatch) -> None:
        """The model needs whole sequences of tokens, not codes."""

    def merge(self, other: Self) -> None:
        """Nothing was collected."""

    def finalise(self) -> ReportResult:
        subject, config = self.subject, self.config
        model = model_of(subject.cache, subject.device)
        sequences = choose_sequences(subject.cache, subject.shards, config.sequences, subject.only)
        stats = subject.cache.stats(subject.target)
        mean = torch.from_numpy(stats.rest.mean).float().to(subject.device)

        def reconstruction(x: Tensor, y: Tensor) -> Tensor:
            flat = x.reshape(-1, x.shape[-1])
            return subject.coder.decode(subject.coder.encode(flat), flat).view(*y.shape[:-1], -1)

        replacements: dict[str, Replace] = {
            "coder": reconstruction,
            "zero": lambda _, y: torch.zeros_like(y),
            "mean": lambda _, y: mean.to(y.dtype).expand_as(y),
        }
        found = losses(
            model, subject.cache, subject.source, subject.target, sequences, config.batch, replacements, subject.only
        )
        return _result(self, found, len(sequences))


def _recovered(clean: float | None, floor: float | None, coder: float | None) -> float | None:
    if clean is None or floor is None or coder is None or floor <= clean:
        return None
    return (floor - coder) / (floor - clean)


def _result(report: CrossEntropy, found: dict[str, Loss], n: int) -> ReportResult:
    def ce(name: str, everything: bool) -> float | None:
        wanted = f"{name}_all" if everything and name != "clean" else name
        return found[wanted].mean("ce", 0 if everything else 1)

    def kl(name: str, everything: bool) -> float | None:
        return found[f"{name}_all" if everything else name].mean("kl", 0 if everything else 1)

    def recovered(floor: str, everything: bool) -> float | None:
        return _recovered(ce("clean", everything), ce(floor, everything), ce("coder", everything))

    tokens = int(found["clean"].tokens[1:].sum())
    over = f"over {tokens:,} predictions in {n:,} sequences"
    figures = [
        Figure(
            "ce_recovered",
            "loss recovered (against zero)",
            recovered("zero", False),
            f"(CE_zero − CE_coder) / (CE_zero − CE_clean) {over}. 1: the model does not notice; 0: as bad as "
            f"deleting the site.",
            "percent",
            with_bos=recovered("zero", True),
            null=0.0,
            better="higher",
            short="loss recovered",
            terminal=True,
            sweep=True,
        ),
        Figure(
            "ce_recovered_mean",
            "loss recovered (against the mean)",
            recovered("mean", False),
            "The same with the site replaced by its mean as the floor. Below 0 the coder does more harm than its "
            "target's mean.",
            "percent",
            with_bos=recovered("mean", True),
            null=0.0,
            better="higher",
        ),
        Figure(
            "ce_increase",
            "loss added (nats)",
            _difference(ce("coder", False), ce("clean", False)),
            "Cross-entropy with the coder less that of the model as it is.",
            with_bos=_difference(ce("coder", True), ce("clean", True)),
            better="lower",
        ),
        Figure(
            "kl",
            "KL from the model as it is (nats)",
            kl("coder", False),
            "Mean KL(clean ‖ spliced) of the next-token distributions.",
            with_bos=kl("coder", True),
            better="lower",
        ),
    ]
    names = (("clean", "the model as it is"), ("coder", "the coder"), ("mean", "the mean"), ("zero", "zero"))
    rows = [
        [
            label,
            ce(name, False),
            kl(name, False) if name != "clean" else 0.0,
            ce(name, True),
            kl(name, True) if name != "clean" else 0.0,
        ]
        for name, label in names
    ]
    shown = {name: significant(ce(name, False)) for name, _ in names}
    lead = (
        f"With the reconstruction in place of {report.subject.target} the model's loss is {shown['coder']} nats per "
        f"token, against {shown['clean']} untouched, {shown['mean']} with the mean and {shown['zero']} with zero; "
        "position 0 left as it is."
    )
    table = Table(
        "losses",
        "Losses",
        "Cross-entropy and KL in nats per token, with position 0 left as it is and with it replaced too.",
        [
            TableColumn("in place of the target", "text"),
            TableColumn("cross-entropy", "number"),
            TableColumn("KL", "number"),
            TableColumn("cross-entropy, position 0 too", "number"),
            TableColumn("KL, position 0 too", "number"),
        ],
        rows,
        len(rows),
    )
    data = {"sequences": n, "predictions": tokens, "losses": {row[0]: row[1:] for row in rows}}
    definitions = [
        (
            "Loss recovered",
            "How much of the damage of removing a site the coder undoes: 1 for a perfect reconstruction, 0 for the "
            "floor. A site "
            "that matters little makes it noisy: look at the loss itself too.",
        )
    ]
    return ReportResult(
        "cross_entropy", report.title, lead, figures, tables=[table], data=data, definitions=definitions
    )


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
