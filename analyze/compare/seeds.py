"""Runs by setting, and their figures over seeds: means, intervals, changes against the first setting."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..probes.intervals import difference, over_seeds
from ..result import Figure, Table, TableColumn, by_key, plain, show
from ..subject.analysed import Analysed

Groups = dict[str, list[Analysed]]
"""Runs by setting; the first setting is what the others are compared with."""

ENDS = ("value", "low", "high")

NOT_THE_SETTING = {
    "seed", "name", "runs", "cache", "variant", "log_every", "checkpoint_every", "checkpoint_minutes",
    "keep_checkpoints", "wandb", "device",
    "eval_rows",
}  # fmt: skip
"""Training settings in which two seeds of one setting may differ."""


def settings_key(facts: dict[str, Any], training: dict[str, Any]) -> str:
    """What two runs share that differ in their seed alone."""
    kept = {key: value for key, value in training.items() if key not in NOT_THE_SETTING}
    kept["data"] = {key: value for key, value in dict(training.get("data", {})).items() if key != "seed"}
    return repr(
        (
            *(facts[key] for key in ("cache", "trained_on", "source", "target")),
            sorted(plain(kept).items(), key=lambda item: item[0]),
        )
    )


def group_runs(analysed: Sequence[Analysed]) -> Groups:
    """Runs by setting, in the order given; the name of a group of several is what their names have in common."""
    groups: Groups = {}
    for one in analysed:
        training = one.facts.get("settings") or {"run": one.subject.name}
        groups.setdefault(settings_key(one.facts, training), []).append(one)
    named: Groups = {}
    for members in groups.values():
        names = [one.subject.name for one in members]
        label = names[0]
        if len(names) > 1:
            common = names[0]
            for name in names[1:]:
                while not name.startswith(common):
                    common = common[:-1]
            label = re.sub(r"[-_.]?(seed)?[-_.=]?$", "", common) or names[0]
        while label in named:
            label += "′"
        named[label] = members
    return named


def baseline_first(groups: Groups, baseline: str | None) -> Groups:
    """The groups, the one that the run `baseline` belongs to ahead of the others."""
    if baseline is None:
        return groups
    first = next(label for label, members in groups.items() if baseline in {one.subject.name for one in members})
    return {first: groups[first], **groups}


def declared(groups: Groups) -> dict[str, Figure]:
    """The figures of all runs by key, as the first run that has them declares them."""
    return by_key(figure for members in groups.values() for one in members for figure in one.figures.values())


def figures_over_seeds(groups: Groups) -> dict[str, Any]:
    """key → group → {"values", "mean", "low", "high", "change"}, and "met" where the figure has an aim.

    The interval is Student's over seeds, from three seeds on. The change, {"value", "low", "high"}, is the difference
    to the first group's mean; its interval is Welch's. A twin has its own key
    ("_with_bos", "_without_massive") and no aim.
    """
    out: dict[str, Any] = {}
    for figure in declared(groups).values():
        if not figure.before_after:
            continue
        for key in figure.keys:
            by_group = _over_groups(groups, figure.key, key)
            if figure.aim is not None and key == figure.key:
                for found in by_group.values():
                    found["met"] = found["mean"] <= figure.aim.at_most
            if by_group:
                out[key] = by_group
    return out


def _over_groups(groups: Groups, figure: str, key: str) -> dict[str, dict[str, Any]]:
    """One number of the figure (its own key, or that of its twin) in every group that has it."""
    out: dict[str, dict[str, Any]] = {}
    before: list[float] = []
    for place, (label, members) in enumerate(groups.items()):
        found = [one.figures[figure].values.get(key) for one in members if figure in one.figures]
        values = [float(value) for value in found if value is not None]
        if not values:
            continue
        interval = over_seeds(values)
        out[label] = {
            "values": values,
            "mean": float(np.mean(values)),
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
        }
        if place == 0:
            before = values
        elif before:
            change = difference(values, before)
            value = float(np.mean(values) - np.mean(before))
            out[label]["change"] = change.to_dict() if change else {"value": value, "low": None, "high": None}
    return out


def before_after(groups: Groups) -> Table:
    """The table of figures that say so (`Figure.before_after`), one column per setting."""
    labels = list(groups)
    figures = {key: figure for figure in declared(groups).values() for key in figure.keys}
    rows = []
    for key, by_group in figures_over_seeds(groups).items():
        figure = figures[key]
        twin = figure.keys[key]
        cells = [_cell(by_group.get(label), by_group.get(labels[0]), figure) for label in labels]
        aim = "" if twin or figure.aim is None else figure.aim.text
        rows.append([f"… {twin}" if twin else figure.label, aim, *cells])
    seeds = ", ".join(f"{label}: {len(members)}" for label, members in groups.items() if len(members) > 1)
    return Table(
        "before_after",
        "Before and after",
        f"The figures of every setting, change against {labels[0]} in round brackets; ✓ where the aim is met. "
        + (
            f"Means over seeds ({seeds}). From three seeds on, 95 % intervals in square brackets: Student's of a mean, "
            f"Welch's of a change. A change whose interval holds 0 may be chance."
            if seeds
            else "One run each: without more seeds, nothing here says how much chance alone would change."
        ),
        [
            TableColumn("figure", "text"),
            TableColumn("aim", "text", "What training against duplicates is to reach."),
            *(TableColumn(label + _role(members), "text") for label, members in groups.items()),
        ],
        rows,
        len(rows),
    )


def _cell(found: dict[str, Any] | None, first: dict[str, Any] | None, figure: Figure) -> str:
    """ "0.23 [0.21, 0.25] ✓ (−12% [−15, −9])"."""
    if found is None:
        return "–"
    form = "number" if figure.format == "integer" else figure.format
    text = show(found["mean"], form)
    if found["low"] is not None:
        text += f" [{show(found['low'], form)}, {show(found['high'], form)}]"
    text += " ✓" if found.get("met") else ""
    return text + _change(found.get("change"), first["mean"] if first else 0)


def _role(members: Sequence[Analysed]) -> str:
    return " (control)" if all(one.subject.role == "control" for one in members) else ""


def _change(change: dict[str, Any] | None, base: float) -> str:
    """ " (−12% [−15, −9])", relative to the first group's mean."""
    if change is None or not base:
        return ""
    value, low, high = (np.nan if end is None else 100 * end / abs(base) for end in map(change.get, ENDS))
    if np.isfinite(low):
        return f" ({value:+.0f}% [{low:+.0f}, {high:+.0f}])"
    return f" ({value:+.0f}%)" if abs(value) >= 0.5 else " (same)"
