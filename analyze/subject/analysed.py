"""A subject with the results of its reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..result import ReportResult, number
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
    def summary(self) -> dict[str, Any]:
        """Name, role, and headline figures by key; twins that include position 0 have the key `<key>_with_bos`."""
        out: dict[str, Any] = {"name": self.subject.name, "role": self.subject.role}
        for result in self.results.values():
            for figure in result.figures:
                if figure.in_summary:
                    out[figure.key] = number(figure.value)
                    if figure.with_bos is not None:
                        out[f"{figure.key}_with_bos"] = number(figure.with_bos)
        return out
