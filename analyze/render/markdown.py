"""The report as Markdown: the same leads, figures and tables, for reading in a terminal or a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..result import TWINS, show

ROWS = 25
"""Rows of a table that Markdown lists; report.json has more."""


def to_markdown(document: dict[str, Any]) -> str:
    """The whole report."""
    runs = document["runs"]
    lines = ["# What the coders learned", ""]
    for cache in document["caches"]:
        lines.append(
            f"Cache `{cache['path']}`: {cache['rows_analysed']:,} of {cache['rows']:,} rows of {cache['ctx']} tokens"
            + (", held-out documents only" if cache["documents"] == "heldout" else "")
            + (f", model `{cache['model']}`, text `{cache['dataset']}`" if cache["model"] else "")
            + "."
        )
    lines += [
        "",
        "Figures exclude position 0 unless they say otherwise: the model's state there is one constant vector. Where "
        "there are massive rows (norms beyond 3 times the median), figures have a twin that excludes them too.",
        "",
        "## Overview",
        "",
        *_figure_table(runs),
        "",
    ]
    comparison = document.get("comparison")
    if comparison:
        lines += [f"## {comparison['title']}", "", _escape(comparison["lead"]), ""]
        for table in comparison["tables"]:
            lines += _table(table)
    for run in runs:
        note = " (control)" if run["role"] == "control" else ""
        lines += [f"## {_escape(run['name'])}{note}", ""]
        for report in run["reports"].values():
            lines += [f"### {report['title']}", "", _escape(report["lead"]), ""]
            if run["role"] == "control":
                continue
            for table in report["tables"]:
                lines += _table(table)
    lines += ["## Definitions", ""]
    lines += [f"- **{_escape(term)}**: {_escape(text)}" for term, text in document["definitions"]]
    return "\n".join(lines) + "\n"


def _figure_table(runs: Sequence[dict[str, Any]]) -> list[str]:
    names = [_escape(run["name"]) + (" (control)" if run["role"] == "control" else "") for run in runs]
    lines = ["| figure | " + " | ".join(names) + " |", "|---|" + "---:|" * len(runs)]
    labels: dict[tuple[str, str], str] = {}
    for run in runs:
        for report_name, report in run["reports"].items():
            for key, figure in report["figures"].items():
                labels.setdefault((report_name, key), figure["label"])
    for (report_name, key), label in labels.items():
        figures = [run["reports"].get(report_name, {}).get("figures", {}).get(key) for run in runs]
        lines.append(f"| {_escape(label)} | " + " | ".join(_cell(f, "value") for f in figures) + " |")
        for twin, name in {**TWINS, "null": "null"}.items():
            if any(f and f[twin] is not None for f in figures):
                lines.append(f"| … {name} | " + " | ".join(_cell(f, twin) for f in figures) + " |")
        if any(f and f["interval"] for f in figures):
            lines.append("| … 95 % interval | " + " | ".join(map(_interval, figures)) + " |")
    return lines


def _interval(figure: dict[str, Any] | None) -> str:
    if not figure or not figure["interval"]:
        return "–"
    return "–".join(show(end, figure["format"]) for end in figure["interval"])


def _cell(figure: dict[str, Any] | None, key: str) -> str:
    return show(figure[key], figure["format"]) if figure else "–"


def _table(table: dict[str, Any]) -> list[str]:
    if not table["rows"]:
        return [f"**{table['title']}**: none.", ""]
    columns = table["columns"]
    lines = [f"**{table['title']}** – {_escape(table['caption'])}", ""]
    lines.append("| " + " | ".join(_escape(c["label"]) for c in columns) + " |")
    lines.append(
        "|" + "|".join("---" if c["format"] in ("text", "remark", "latents") else "---:" for c in columns) + "|"
    )
    for row in table["rows"][:ROWS]:
        cells = (_escape(show(value, c["format"])) for value, c in zip(row, columns, strict=True))
        lines.append("| " + " | ".join(cells) + " |")
    if table["total"] > ROWS:
        where = f"; all in {table['more']}" if table["more"] else ""
        lines.append("")
        lines.append(f"{min(ROWS, len(table['rows']))} of {table['total']:,} listed{where}.")
    return [*lines, ""]


def _escape(text: str) -> str:
    """Text that Markdown (and HTML inside Markdown) takes literally, on one line."""
    text = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "|*_`[]":
        text = text.replace(mark, "\\" + mark)
    return text.replace("\r", " ").replace("\n", " ⏎ ")
