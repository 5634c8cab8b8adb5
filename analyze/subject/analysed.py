"""One run (or control) with its results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..reports import Subject
from ..result import ReportResult, number


@dataclass(frozen=True)
class Analysed:
    """One run (or control) with its results, by report.

    Attributes:
        facts: what else is known of it: architecture, sizes, training, its figures on held-out documents.
    """

    subject: Subject
    facts: dict[str, Any]
    results: dict[str, ReportResult]

    @property
    def summary(self) -> dict[str, Any]:
        """Headline figures by key; twins with position 0 as key_with_bos."""
        out: dict[str, Any] = {"name": self.subject.name, "role": self.subject.role}
        for result in self.results.values():
            for figure in result.figures:
                if figure.in_summary:
                    out[figure.key] = number(figure.value)
                    if figure.with_bos is not None:
                        out[f"{figure.key}_with_bos"] = number(figure.with_bos)
        return out
