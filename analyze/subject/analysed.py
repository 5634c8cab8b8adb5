"""A subject with the results of its reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...shared.runs.explanations import Explanations
from ...shared.runs.folder import Run
from ..result import Figure, ReportResult, values_of
from .subject import Subject


@dataclass(frozen=True)
class Analysed:
    """One run (or control) with its results.

    Attributes:
        subject: the run or control.
        facts: plain data about it: architecture, sizes, training, its figures on held-out documents.
        results: kind of report → result.
    """

    subject: Subject
    facts: dict[str, Any]
    results: dict[str, ReportResult]

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures of every report, by key."""
        return {figure.key: figure for result in self.results.values() for figure in result.figures}

    @property
    def summary(self) -> dict[str, Any]:
        """Name, role, and headline figures by key; twins have the keys `<key>_with_bos`, `<key>_without_massive`."""
        return {"name": self.subject.name, "role": self.subject.role, **values_of(self.figures.values())}


def training_facts(run: Run) -> dict[str, Any]:
    """What a report says of the training of a run."""
    summary = run.summary
    keys = ("steps", "tokens", "seconds", "fvu", "fvu_with_bos", "fvu_untrained", "l0", "evaluated_on", "tuned")
    return {key: summary[key] for key in keys if key in summary}


def labelled_by(explanations: Explanations | None) -> dict[str, str] | None:
    """Whose labels of latents a report shows, and which file they come from; None without labels."""
    return None if explanations is None else {"judge": explanations.judge, "sha256": explanations.digest}
