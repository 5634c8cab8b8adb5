"""The comparison of a sweep as a page: its tables with legends, its frontiers and other plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...shared.page import Column, Page, Picture, Section, Table
from .markdown import (
    EFFICIENCY,
    change,
    changes_of,
    efficiency_rows,
    intervals_text,
    is_of_labels,
    not_comparable,
    plain_cell,
    reproduce_text,
    rows_seen,
    settings_rows,
    setup_text,
)

PLOTS = (
    ("frontiers", "Frontiers", "One point per run. Lower is better on every vertical axis."),
    ("bars", "Final figures", "Means with intervals over seeds; a dot is a run."),
    ("training", "At the end of training", "The last value of each curve of training."),
    ("curves", "Curves", "A thin line is a run, a thick one the mean over a setting's seeds."),
)
"""Name of a plot's file, its heading, how to read it."""


def sweep_page(document: Mapping[str, Any], plots: Mapping[str, bytes]) -> Page:
    """The page.

    Args:
        plots: name of a plot → its PNG.
    """
    sections = [_settings(document)]
    pictures = {
        name: Section(title, (text,), pictures=(Picture(plots[name], f"{title} of {document['title']}"),))
        for name, title, text in PLOTS
        if name in plots
    }
    sections += [pictures[name] for name in ("frontiers", "bars") if name in pictures]
    labels = [column for column in document["columns"] if is_of_labels(column)]
    if labels:
        sections.append(Section("Absorption and sparse probing", tables=(_table(document, labels, against=False),)))
    if document["efficiency"]:
        sections.append(_efficiency(document))
    sections += [pictures[name] for name in ("training", "curves") if name in pictures]
    sections += [_runs(document), Section("Reproduce", (f"Measured on {document['machine']}.",), code=_code(document))]
    missing = document["missing"]
    left = [f"Not finished, and not in the tables: {', '.join(missing)}."] if missing else []
    about = f"sweep {document['name']} · {setup_text(dict(document))} {rows_seen(dict(document))}"
    return Page(str(document["title"]), about, [*filter(None, [document["about"].strip()]), *left], sections)


def _settings(document: Mapping[str, Any]) -> Section:
    figures = [column for column in document["columns"] if not is_of_labels(column)]
    return Section("Settings", (f"{intervals_text(document)} Controls are pale.",), (_table(document, figures),))


def _table(document: Mapping[str, Any], columns: Sequence[dict[str, Any]], against: bool = True) -> Table:
    """One row per setting, as in Markdown."""
    rows = settings_rows(dict(document), columns)
    changes = changes_of(document) if against else {}
    for cells, row in zip(rows, document["settings"], strict=True):
        cells += [change(row["against"].get(key)) for key in changes]
    head = [Column("setting", text=True), Column("seeds", "Runs that differ in their seed only.")]
    head += [Column(column["label"], column["definition"]) for column in columns]
    baseline = document["baseline"]
    head += [Column(f"{name} vs. {baseline}", f"Change against {baseline}, seed by seed.") for name in changes.values()]
    soft = frozenset(place for place, row in enumerate(document["settings"]) if row["role"] == "control")
    return Table(head, rows, soft)


def _runs(document: Mapping[str, Any]) -> Section:
    columns = document["columns"]
    rows = [
        [run["run"], str(run["seed"]), *(plain_cell(run, column["key"], column["format"]) for column in columns)]
        for run in document["runs"]
    ]
    head = [Column("run", text=True), Column("seed"), *(Column(column["label"]) for column in columns)]
    return Section("Every run", ("The columns are those of the settings.",), (Table(head, rows),))


def _efficiency(document: Mapping[str, Any]) -> Section:
    head = [Column(label, definition, text=place < 2) for place, (label, definition) in enumerate(EFFICIENCY.items())]
    rows = efficiency_rows(document)
    return Section(
        "Absorption reduction efficiency", tuple(not_comparable(document)), (Table(head, rows),) if rows else ()
    )


def _code(document: Mapping[str, Any]) -> str:
    return reproduce_text(document)
