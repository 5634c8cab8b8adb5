"""The comparison of a sweep: settings with intervals over seeds, every run, what takes absorption away at what cost."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..probes.intervals import over_seeds
from ..result import Number, show
from .efficiency import Trained, reduction_efficiency
from .measure import Measured

SCHEMA, SCHEMA_VERSION = "sparse-coder-sweep", 1
ABSORPTION, PROBING = "absorption_", "probing_auc_"


@dataclass(frozen=True)
class Column:
    """One figure of the tables.

    Attributes:
        key: name in the figures.
        definition: one sentence.
    """

    key: str
    label: str
    definition: str
    format: str = "number"


COLUMNS = (
    Column("fvu", "FVU", "Fraction of variance unexplained on held-out documents, without position 0."),
    Column("fvu_with_bos", "FVU with BOS", "The same with position 0."),
    Column("l0", "L0", "Mean number of active latents per held-out row, without position 0."),
    Column("dead", "dead", "Latents that had not fired for `dead_after` tokens when training ended.", "integer"),
    Column(
        "n_pairs_above",
        "pairs",
        "Pairs of latents whose token-aligned activations correlate beyond the threshold, without position 0.",
        "integer",
    ),
    Column("n_pairs_above_with_bos", "pairs with BOS", "The same with position 0 counted in.", "integer"),
    Column("mean_max_r", "mean nearest r", "Mean over latents of the largest r with another one, without position 0."),
    Column("mean_max_cosine", "nearest cosine", "Mean over latents of the largest decoder cosine with another one."),
    Column(
        "bos_share_top", "BOS in top 100", "Share of all latents' 100 largest activations at position 0.", "percent"
    ),
    Column("specialised_share", "specialised", "Latents that fire on one token or domain, of those scored.", "percent"),
    Column("context_diversity", "contexts", "Share of different contexts among a latent's top activations.", "percent"),
    Column("ce_recovered", "CE recovered", "Share of the model's loss that survives the coder in its place."),
    Column(
        "stability",
        "stability",
        "Jaccard index of the pairs that the penalty selected at two successive steps, mean of the second half.",
    ),
    Column("recall", "recall", "Of the pairs truly beyond the threshold, the share that the projection nominated."),
    Column("step_ms", "ms per step", "The run's own time per step, on the machine named below."),
    Column("seconds", "seconds", "The run's own time in training."),
)
"""Figures with a column; one that no run has is left out."""


@dataclass(frozen=True)
class Heading:
    """What the comparison is called and says of itself.

    Attributes:
        baseline: the setting that others are compared with.
        command: how to make it again; `--only SETTING` makes one row.
        machine: what it was measured on.
        documents: which documents the reports looked at, as in AnalyzeConfig.
    """

    name: str
    title: str
    about: str
    baseline: str
    command: str
    machine: str
    documents: str = "all"


# --- the numbers ----------------------------------------------------------------------------------------------------


def columns_of(figures: Iterable[dict[str, Number]]) -> list[Column]:
    """The columns that at least one run can fill: the usual ones, then absorption and probing as they were measured."""
    seen = dict.fromkeys(key for one in figures for key in one)
    out = [column for column in COLUMNS if column.key in seen]
    for key in seen:
        if key.startswith(ABSORPTION):
            family = key.removeprefix(ABSORPTION)
            text = f"Full absorption of the labels of family {family}; n. e.: not evaluable (the reports say why)."
            out.append(Column(key, f"absorption, {family}", text, "percent"))
        elif key.startswith(PROBING):
            k = key.removeprefix(PROBING)
            if k == "dense":
                text = "The same for a probe of all dimensions of the activations: what there is to say."
                out.append(Column(key, "dense probe", text))
                continue
            text = f"Mean area under the ROC curve of probes of {k} latents; 0.5 is a guess."
            out.append(Column(key, f"probing k={k}", text))
    return out


def compare_settings(
    heading: Heading, measured: Sequence[Measured], controls_of: str, missing: Sequence[str] = ()
) -> dict[str, Any]:
    """The comparison over all runs that are there, as plain data.

    Args:
        controls_of: the setting whose untrained coders were measured.
        missing: names of runs that are not finished: named, never silently left out.
    """
    settings: dict[str, list[Measured]] = {}
    for one in measured:
        settings.setdefault(one.member.setting, []).append(one)
    base = settings.get(heading.baseline, [])
    columns = columns_of([m.figures for m in measured])
    controls = [one for one in measured if one.untrained is not None]
    rows = [_setting(heading, setting, members, base, columns) for setting, members in settings.items()]
    if controls:
        rows.append(
            {
                "setting": f"untrained ({controls_of})",
                "role": "control",
                "seeds": [one.member.seed for one in controls],
                "figures": _estimates(
                    [one.untrained or {} for one in controls], columns, [one.untrained_intervals for one in controls]
                ),
                "against": {},
                "command": heading.command,
            }
        )
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "name": heading.name,
        "title": heading.title,
        "about": heading.about,
        "command": heading.command,
        "machine": heading.machine,
        "baseline": heading.baseline,
        "setup": _setup(measured),
        "documents": heading.documents,
        "rows_analysed": max((one.rows for one in measured), default=0),
        "columns": [{"key": c.key, "label": c.label, "format": c.format, "definition": c.definition} for c in columns],
        "settings": rows,
        "efficiency": _efficiency(settings, base, heading.baseline),
        "runs": [
            {
                "run": one.member.run.name,
                "setting": one.member.setting,
                "seed": one.member.seed,
                "role": one.role,
                **one.figures,
            }
            for one in measured
        ],
        "missing": list(missing),
    }


def _setup(measured: Sequence[Measured]) -> dict[str, Any]:
    """What the runs have in common: sites, widths, sizes, steps."""
    finals = [one.member.run.final for one in measured]
    return {
        "source": sorted({final["source"] for final in finals}),
        "target": sorted({final["target"] for final in finals}),
        "d_in": sorted({final["d_in"] for final in finals}),
        "d_out": sorted({final["d_out"] for final in finals}),
        "latents": sorted({final["coder"]["latents"] for final in finals}),
        "steps": sorted({final["summary"]["steps"] for final in finals}),
        "tokens": sorted({final["summary"]["tokens"] for final in finals}),
    }


def setup_text(document: dict[str, Any]) -> str:
    """ "layer_03.resid_mid → layer_03.mlp_out, width 384; 2,048 latents; 433 steps, 221,696 rows."."""
    setup = document["setup"]
    words = {key: " or ".join(f"{v:,}" if isinstance(v, int) else v for v in values) for key, values in setup.items()}
    sites = words["source"] if setup["source"] == setup["target"] else f"{words['source']} → {words['target']}"
    return (
        f"{sites}, width {words['d_out']}; {words['latents']} latents; {words['steps']} steps, {words['tokens']} rows."
    )


def _setting(
    heading: Heading, setting: str, members: Sequence[Measured], base: Sequence[Measured], columns: Sequence[Column]
) -> dict[str, Any]:
    return {
        "setting": setting,
        "role": members[0].role,
        "seeds": [one.member.seed for one in members],
        "figures": _estimates([one.figures for one in members], columns, [one.intervals for one in members]),
        "against": {} if setting == heading.baseline else _against(members, base),
        "command": f"{heading.command} --only {setting}",
    }


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds and, from three on, Student's 95 % interval."""
    interval = over_seeds(values)
    return {
        "mean": float(np.mean(values)),
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "n": len(values),
    }


def _estimates(
    figures: Sequence[dict[str, Number]],
    columns: Sequence[Column],
    over_rows: Sequence[dict[str, tuple[float, float]]],
) -> dict[str, Any]:
    """A figure of which one seed has no value has none here: a mean of the others would be of other seeds.

    Where three seeds or more agree to the digit (absorption of 0 in all of them) they say nothing of the uncertainty:
    the interval is then the widest that a run has over its labels and rows.
    """
    out: dict[str, Any] = {}
    for column in columns:
        key = column.key
        values = [one.get(key) for one in figures]
        whole = [float(value) for value in values if value is not None]
        if not any(key in one for one in figures):
            continue
        out[key] = estimate(whole) if len(whole) == len(values) else None
        spread = [one[key] for one in over_rows if key in one]
        found = out[key]
        if found is not None and spread and found["low"] is not None and found["low"] == found["high"]:
            found |= {"low": min(low for low, _ in spread), "high": max(high for _, high in spread)}
    return out


def _against(members: Sequence[Measured], base: Sequence[Measured]) -> dict[str, Any]:
    """Relative change of FVU and of time per step, paired by seed."""
    before = {one.member.seed: one for one in base}
    out = {}
    for key in ("fvu", "step_ms"):
        pairs = [
            (before[one.member.seed].figures.get(key), one.figures.get(key))
            for one in members
            if one.member.seed in before
        ]
        changes = [float(b) / float(a) - 1 for a, b in pairs if a and b is not None]
        if changes and len(changes) == len(members):
            out[key] = estimate(changes)
    return out


def _efficiency(settings: dict[str, list[Measured]], base: Sequence[Measured], baseline: str) -> list[dict[str, Any]]:
    """Absorption reduction efficiency of every trained setting, for each family of labels."""
    families = dict.fromkeys(key for one in base for key in one.figures if key.startswith(ABSORPTION))
    out = []
    for setting, members in settings.items():
        if setting == baseline or members[0].role != "run":
            continue
        for key in families:
            result = reduction_efficiency([_trained(one, key) for one in base], [_trained(one, key) for one in members])
            out.append(
                {
                    "setting": setting,
                    "family": key.removeprefix(ABSORPTION),
                    "status": result.status,
                    "reduction": result.mean_reduction,
                    "low": result.reduction.low if result.reduction else None,
                    "high": result.reduction.high if result.reduction else None,
                    "fvu_cost": result.fvu_cost,
                    "time_cost": result.time_cost,
                    "per_fvu": result.per_fvu,
                    "per_time": result.per_time,
                    "seeds": result.seeds,
                }
            )
    return out


def _trained(one: Measured, family: str) -> Trained:
    values = [one.figures.get(key) for key in (family, "fvu", "l0", "seconds")]
    return Trained(one.member.seed, *(None if value is None else float(value) for value in values))


# --- as text --------------------------------------------------------------------------------------------------------


def cell(value: dict[str, Any] | None, format: str, key: str = "") -> str:
    """ "0.276 [0.27, 0.28]"; without an interval that rounds to a point; n. e. for absorption that cannot be
    evaluated."""
    if value is None:
        return "n. e." if key.startswith(ABSORPTION) else "–"
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
    """A table of Markdown; first column left, the others right."""
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    head = [text.replace("|", "\\|") for text in header]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in escaped)])


def settings_table(
    document: dict[str, Any], keys: Sequence[str] | None = None, against: bool = True, emphasis: bool = True
) -> str:
    """One line per setting, and the controls.

    Args:
        keys: the columns to show; None: all.
        against: also the changes against the baseline.
        emphasis: controls in Markdown's italics; False: with "(control)" behind the name.
    """
    columns = [column for column in document["columns"] if keys is None or column["key"] in keys]
    against = against and any(row["against"] for row in document["settings"])
    header = ["setting", "seeds", *(column["label"] for column in columns)]
    if against:
        header += [f"FVU vs. {document['baseline']}", f"time vs. {document['baseline']}"]
    rows = []
    for row in document["settings"]:
        name = row["setting"]
        if row["role"] == "control":
            name = f"*{name}*" if emphasis else f"{name} (control)"
        cells = [cell(row["figures"].get(c["key"]), c["format"], c["key"]) if c["key"] in row["figures"] else "–"
                 for c in columns]  # fmt: skip
        if against:
            cells += [change(row["against"].get("fvu")), change(row["against"].get("step_ms"))]
        rows.append([name, str(len(row["seeds"])), *cells])
    return markdown_table(header, rows)


def terminal_table(document: dict[str, Any], keys: Sequence[str]) -> str:
    """The figures with these keys for a terminal: columns of one width, no bars, controls named."""
    table = settings_table(document, keys, against=False, emphasis=False)
    lines = [line[2:-2] for line in table.splitlines() if not line.startswith("|---")]
    rows = [[cell.replace("\\|", "|") for cell in re.split(r" (?<!\\)\| ", line)] for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def is_of_labels(column: dict[str, str]) -> bool:
    """Whether a column is about labels (absorption, probing): those have a table of their own."""
    return column["key"].startswith((ABSORPTION, PROBING))


def tables(document: dict[str, Any]) -> list[tuple[str, str]]:
    """(heading, Markdown) of every table over settings."""
    figures = [c["key"] for c in document["columns"] if not is_of_labels(c)]
    labels = [c["key"] for c in document["columns"] if is_of_labels(c)]
    found = [("Figures", settings_table(document, figures))]
    if labels:
        found.append(("Absorption and sparse probing", settings_table(document, labels, against=False)))
    if efficiency := efficiency_table(document):
        found.append(("Absorption reduction efficiency", efficiency))
    return found


def efficiency_table(document: dict[str, Any]) -> str:
    """Absorption reduction efficiency, and what could not be compared and why; empty where absorption was not
    measured."""
    rows = []
    reasons: dict[str, list[str]] = {}
    for one in document["efficiency"]:
        if one["status"] != "measured":
            reason = re.sub(r" \(seed \d+\)", "", one["status"])
            reasons.setdefault(f"{one['family']}: {reason}", []).append(one["setting"])
            continue
        reduction = {"mean": one["reduction"], "low": one["low"], "high": one["high"]}
        ratios = [show(one[key]) if one[key] is not None else "no cost" for key in ("per_fvu", "per_time")]
        costs = [f"{100 * one[key]:+.1f} %" for key in ("fvu_cost", "time_cost")]
        rows.append([one["setting"], one["family"], change(reduction), *costs, *ratios])
    header = ["setting", "family", "absorption taken away", "FVU", "time", "per % of FVU", "per % of time"]
    parts = [markdown_table(header, rows)] if rows else []
    if reasons:
        listed = "\n".join(f"- {reason} ({', '.join(settings)})" for reason, settings in reasons.items())
        parts.append(f"Not to be compared:\n\n{listed}")
    return "\n\n".join(parts)


def runs_table(document: dict[str, Any]) -> str:
    """One line per run."""
    columns = document["columns"]
    rows = [
        [
            run["run"],
            str(run["seed"]),
            *(_plain(run.get(c["key"]), c["format"], c["key"], c["key"] in run) for c in columns),
        ]
        for run in document["runs"]
    ]
    return markdown_table(["run", "seed", *(column["label"] for column in columns)], rows)


def _plain(value: Number, format: str, key: str, there: bool) -> str:
    return "n. e." if value is None and there and key.startswith(ABSORPTION) else show(value, format)


def rows_seen(document: dict[str, Any]) -> str:
    """On which rows the reports' figures stand."""
    which = ", of documents that training held out" if document["documents"] == "heldout" else " of the whole cache"
    return f"Reports looked at {document['rows_analysed']:,} rows{which}."


def to_markdown(document: dict[str, Any]) -> str:
    """The whole comparison."""
    n = max((len(row["seeds"]) for row in document["settings"]), default=0)
    intervals = (
        "Means over seeds with Student's 95 % intervals. Seeds differ in the initial weights and the penalties' random "
        "numbers; the order of the data is the same."
        if n >= 3
        else "Fewer than three seeds: no intervals, and no telling what chance alone would change."
    )
    parts = [f"# {document['title']}", document["about"].strip()]
    parts.append(f"{setup_text(document)} {intervals} {rows_seen(document)} *Controls* in italics.")
    if document["missing"]:
        parts.append(f"Not finished, and not in the tables: {', '.join(document['missing'])}.")
    for title, table in tables(document):
        parts += [f"## {title}", table]
    parts += ["## Every run", runs_table(document)]
    parts.append("\n".join(f"- **{c['label']}**: {c['definition']}" for c in document["columns"]))
    commands = [f"$ {row['command']}" for row in document["settings"] if row["command"] != document["command"]]
    block = "\n".join([f"$ {document['command']}", *commands])
    parts += ["## Again", f"Measured on {document['machine']}.", f"```console\n{block}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_csv(document: dict[str, Any]) -> str:
    """One line per run, every figure that a report calls a headline, in full precision."""
    names = list(dict.fromkeys(key for run in document["runs"] for key in run))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(document["runs"])
    return text.getvalue()


def write_comparison(document: dict[str, Any], folder: Path) -> list[Path]:
    """comparison.csv, .md and .json in `folder`, in place of older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "comparison.csv": to_csv(document),
        "comparison.md": to_markdown(document),
        "comparison.json": json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
