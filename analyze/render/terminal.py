"""What `pipeline analyze` prints: the headline figures of every run, and what the other reports say."""

from __future__ import annotations

from collections.abc import Sequence

from ...shared.text_table import explained_table
from ..config import AnalyzeConfig
from ..result import by_key, show
from ..subject.analysed import Analysed

TWIN = "{1}"
"""Heading of a twin's column: the column to its left says of what."""


def headlines(analysed: Sequence[Analysed], config: AnalyzeConfig) -> str:
    """The table of figures with `terminal`, one line per run, then what the other reports say in words."""
    parts = [figures_table(analysed), *(f"{name}: {lead}" for name, lead in leads(analysed, config))]
    return "\n".join(part for part in parts if part)


def figures_table(analysed: Sequence[Analysed]) -> str:
    """One line per run and control; "" where no report has a figure for the terminal."""
    figures = by_key(figure for one in analysed for figure in one.figures.values() if figure.terminal)
    summaries = [one.summary for one in analysed]
    columns = [column for figure in figures.values() for column in figure.columns(TWIN)]
    columns = [column for column in columns if any(column.key in summary for summary in summaries)]
    if not columns:
        return ""
    names = [one["name"] + (" (control)" if one["role"] == "control" else "") for one in summaries]
    rows = [
        [name, *(show(one.get(column.key), column.format) for column in columns)]
        for name, one in zip(names, summaries, strict=True)
    ]
    return explained_table(
        rows,
        ["run", *(column.label for column in columns)],
        breaks=0,
        definitions={column.label: column.definition for column in columns},
    )


def leads(analysed: Sequence[Analysed], config: AnalyzeConfig) -> list[tuple[str, str]]:
    """(run, what a report says of it): reports on request without a figure in the table; all if there is no table."""
    reports = dict.fromkeys(name for one in analysed for name in one.results)
    in_table = {
        name
        for one in analysed
        for name, result in one.results.items()
        if any(figure.terminal for figure in result.figures)
    }
    wanted = [
        name for name in reports if name not in in_table and (not in_table or not config.reports[name].by_default)
    ]
    return [(one.subject.name, one.results[name].lead) for one in analysed for name in wanted if name in one.results]
