"""The comparison of a sweep as text: Markdown for a file and for the docs, a plain table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...shared.text_table import explained_table
from ..result import show
from .estimates import ABSORPTION

CHANGES = {"fvu": "FVU", "fvu_dims": "FVU per dim.", "step_ms": "time"}
"""Changes against the baseline that have a column, by key."""

PROBING = "probing_auc_"
"""Keys of sparse probing begin so; with absorption, these figures have a table of their own."""


def cell(value: dict[str, Any] | None, format: str) -> str:
    """ "0.276 [0.27, 0.28]", without an interval that rounds to a point; "n. e." for what could not be evaluated."""
    if value is None:
        return "n. e."
    form = "number" if format == "integer" else format
    text = show(value["mean"], form)
    low, high = show(value["low"], form), show(value["high"], form)
    return text if value["low"] is None or low == high else f"{text} [{low}, {high}]"


def change(value: dict[str, Any] | None) -> str:
    """ "+0.5 % [+0.2, +0.8]"."""
    if value is None:
        return "–"
    text = f"{100 * value['mean']:+.1f} %"
    return text if value["low"] is None else f"{text} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first column is aligned left, the others right."""
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    head = [text.replace("|", "\\|") for text in header]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in escaped)])


def settings_rows(document: dict[str, Any], columns: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Name, number of seeds and the columns' cells, one line per setting and control."""
    return [
        [
            row["setting"],
            str(len(row["seeds"])),
            *(cell(row["figures"][c["key"]], c["format"]) if c["key"] in row["figures"] else "–" for c in columns),
        ]
        for row in document["settings"]
    ]


def settings_table(document: dict[str, Any], columns: Sequence[dict[str, Any]], against: bool = True) -> str:
    """One line per setting in Markdown, controls in italics.

    Args:
        columns: those of the document's to show.
        against: also the changes against the baseline.
    """
    changes = changes_of(document) if against else {}
    header = ["setting", "seeds", *(column["label"] for column in columns)]
    rows = settings_rows(document, columns)
    header += [f"{name} vs. {document['baseline']}" for name in changes.values()]
    for cells, row in zip(rows, document["settings"], strict=True):
        if row["role"] == "control":
            cells[0] = f"*{cells[0]}*"
        cells += [change(row["against"].get(key)) for key in changes]
    return markdown_table(header, rows)


def changes_of(document: Mapping[str, Any]) -> dict[str, str]:
    """Key → heading of the changes against the baseline that were measured."""
    shown = {key for row in document["settings"] for key in row["against"]}
    return {key: name for key, name in CHANGES.items() if key in shown}


def terminal_table(document: dict[str, Any]) -> str:
    """The figures that show themselves on a terminal (`Figure.terminal`), controls named."""
    columns = [column for column in document["columns"] if column["terminal"]]
    rows = settings_rows(document, columns)
    for cells, row in zip(rows, document["settings"], strict=True):
        cells[0] += " (control)" if row["role"] == "control" else ""
    definitions = {column["label"]: column["definition"] for column in columns}
    return explained_table(rows, ["setting", "seeds", *definitions], breaks=0, definitions=definitions)


def is_of_labels(column: dict[str, Any]) -> bool:
    """Whether a column is about labels (absorption, probing); these have a table of their own."""
    return str(column["key"]).startswith((ABSORPTION, PROBING))


def tables(document: dict[str, Any]) -> list[tuple[str, str]]:
    """(heading, Markdown) of every table over settings."""
    figures = [column for column in document["columns"] if not is_of_labels(column)]
    labels = [column for column in document["columns"] if is_of_labels(column)]
    found = [("Figures", settings_table(document, figures))]
    if labels:
        found.append(("Absorption and sparse probing", settings_table(document, labels, against=False)))
    if efficiency := efficiency_table(document):
        found.append(("Absorption reduction efficiency", efficiency))
    return found


def efficiency_table(document: dict[str, Any]) -> str:
    """Absorption reduction efficiency, then the settings that are not comparable and why; "" without absorption."""
    rows = efficiency_rows(document)
    parts = [markdown_table(list(EFFICIENCY), rows)] if rows else []
    if reasons := not_comparable(document):
        listed = "\n".join(f"- {reason}" for reason in reasons)
        parts.append(f"Not comparable:\n\n{listed}")
    return "\n\n".join(parts)


EFFICIENCY = {
    "setting": "",
    "family": "",
    "absorption removed": "Share of the baseline's absorption that the setting removes.",
    "FVU": "Change of the FVU: its cost in reconstruction.",
    "time": "Change of the time of a step: its cost in time.",
    "per % of FVU": "Absorption removed for each per cent of FVU.",
    "per % of time": "Absorption removed for each per cent of time.",
}
"""Columns of the efficiency, and what they mean."""


def efficiency_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """One row per setting whose efficiency was measured."""
    rows = []
    for one in document["efficiency"]:
        if one["status"] == "measured":
            reduction = {"mean": one["reduction"], "low": one["low"], "high": one["high"]}
            ratios = [show(one[key]) if one[key] is not None else "no cost" for key in ("per_fvu", "per_time")]
            costs = [f"{100 * one[key]:+.1f} %" for key in ("fvu_cost", "time_cost")]
            rows.append([one["setting"], one["family"], change(reduction), *costs, *ratios])
    return rows


def not_comparable(document: Mapping[str, Any]) -> list[str]:
    """Why settings have no efficiency, each reason with its settings."""
    reasons: dict[str, list[str]] = {}
    for one in document["efficiency"]:
        if one["status"] != "measured":
            reason = re.sub(r" \(seed \d+\)", "", one["status"])
            reasons.setdefault(f"{one['family']}: {reason}", []).append(one["setting"])
    return [f"{reason} ({', '.join(settings)})" for reason, settings in reasons.items()]


def runs_table(document: dict[str, Any]) -> str:
    """One line per run."""
    columns = document["columns"]
    rows = [
        [
            run["run"],
            str(run["seed"]),
            *(plain_cell(run, c["key"], c["format"]) for c in columns),
        ]
        for run in document["runs"]
    ]
    return markdown_table(["run", "seed", *(column["label"] for column in columns)], rows)


def plain_cell(run: Mapping[str, Any], key: str, format: str) -> str:
    """A run's own value; "n. e." where it cannot be evaluated, "–" where it was not measured."""
    return "n. e." if key in run and run[key] is None else show(run.get(key), format)


def setup_text(document: dict[str, Any]) -> str:
    """ "layer_03.resid_mid → layer_03.mlp_out, width 384; 2,048 latents; 433 steps, 221,696 rows."."""
    setup = document["setup"]
    words = {key: " or ".join(f"{v:,}" if isinstance(v, int) else v for v in values) for key, values in setup.items()}
    sites = words["source"] if setup["source"] == setup["target"] else f"{words['source']} → {words['target']}"
    return (
        f"{sites}, width {words['d_out']}; {words['latents']} latents; {words['steps']} steps, {words['tokens']} rows."
    )


def rows_seen(document: dict[str, Any]) -> str:
    """Which rows the reports analyzed."""
    which = " of held-out documents" if document["documents"] == "heldout" else " of the whole cache"
    return f"The reports analyzed {document['rows_analysed']:,} rows{which}."


def intervals_text(document: Mapping[str, Any]) -> str:
    """What the intervals are, or why there are none."""
    if max((len(row["seeds"]) for row in document["settings"]), default=0) >= 3:
        return (
            "Means over seeds with Student's 95 % intervals. Seeds differ in the initial weights and the penalties' "
            "random numbers; the order of the data is the same."
        )
    return "Fewer than three seeds: no intervals, so any difference may be chance."


def reproduce_text(document: Mapping[str, Any]) -> str:
    """The command of the sweep, and those of its settings alone."""
    commands = [f"$ {row['command']}" for row in document["settings"] if row["command"] != document["command"]]
    return "\n".join([f"$ {document['command']}", *commands])


def to_markdown(document: dict[str, Any]) -> str:
    """The whole comparison."""
    parts = [f"# {document['title']}", document["about"].strip()]
    parts.append(f"{setup_text(document)} {intervals_text(document)} {rows_seen(document)} *Controls* in italics.")
    if document["missing"]:
        parts.append(f"Not finished, and not in the tables: {', '.join(document['missing'])}.")
    for title, table in tables(document):
        parts += [f"## {title}", table]
    parts += ["## Every run", runs_table(document)]
    parts.append("\n".join(f"- **{c['label']}**: {c['definition']}" for c in document["columns"]))
    block = reproduce_text(document)
    parts += ["## Reproduce", f"Measured on {document['machine']}.", f"```console\n{block}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"
