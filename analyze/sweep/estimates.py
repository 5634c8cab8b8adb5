"""The comparison of a sweep as numbers: settings with intervals over seeds, changes, absorption and its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..probes.intervals import over_seeds
from ..result import Figure, FigureColumn, by_key, values_of
from .efficiency import Trained, reduction_efficiency
from .measure import Measured

SCHEMA, SCHEMA_VERSION = "sparse-coder-sweep", 1
ABSORPTION = "absorption_"
"""Keys of the absorption of a family of labels begin so."""


@dataclass(frozen=True, kw_only=True)
class Heading:
    """Title and context of a comparison.

    Attributes:
        baseline: the setting that the others are compared with.
        command: reproduces it; with `--only SETTING` one row.
        machine: the one that it was measured on.
        documents: which documents the reports analyzed, as in AnalyzeConfig.
    """

    name: str
    title: str
    about: str
    baseline: str
    command: str
    machine: str
    documents: str = "all"


def columns_of(measured: Sequence[Measured]) -> list[tuple[FigureColumn, Figure]]:
    """The columns of the figures that show themselves in a sweep, of which at least one run has a value or its lack."""
    figures = by_key(figure for one in measured for figure in one.figures.values())
    seen = {key for one in measured for key in values_of(one.figures.values())}
    return [
        (column, figure)
        for figure in figures.values()
        if figure.sweep
        for column in figure.columns()
        if column.key in seen
    ]


def compare_settings(
    heading: Heading, measured: Sequence[Measured], controls_of: str, missing: Sequence[str] = ()
) -> dict[str, Any]:
    """The comparison over all finished runs, as plain data.

    Args:
        controls_of: the setting whose untrained coders were measured.
        missing: names of unfinished runs: listed, never omitted in silence.
    """
    settings: dict[str, list[Measured]] = {}
    for one in measured:
        settings.setdefault(one.member.setting, []).append(one)
    base = settings.get(heading.baseline, [])
    columns = columns_of(measured)
    keys = [column.key for column, _ in columns]
    controls = [one for one in measured if one.untrained is not None]
    rows = [_setting(heading, setting, members, base, keys) for setting, members in settings.items()]
    if controls:
        rows.append(
            {
                "setting": f"untrained ({controls_of})",
                "role": "control",
                "seeds": [one.member.seed for one in controls],
                "figures": _estimates([one.untrained or {} for one in controls], keys),
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
        "columns": [
            {**asdict(column), "terminal": figure.terminal and column.key == figure.key} for column, figure in columns
        ],
        "settings": rows,
        "efficiency": _efficiency(settings, base, heading.baseline),
        "runs": [
            {
                "run": one.member.run.name,
                "setting": one.member.setting,
                "seed": one.member.seed,
                "role": one.role,
                **values_of(one.figures.values()),
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


def _setting(
    heading: Heading, setting: str, members: Sequence[Measured], base: Sequence[Measured], keys: Sequence[str]
) -> dict[str, Any]:
    return {
        "setting": setting,
        "role": members[0].role,
        "seeds": [one.member.seed for one in members],
        "figures": _estimates([one.figures for one in members], keys),
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


def _estimates(runs: Sequence[Mapping[str, Figure]], keys: Sequence[str]) -> dict[str, Any]:
    """A figure of which one seed has no value has none here: a mean of the others would be of other seeds.

    Where three seeds or more agree to the digit (absorption of 0 in all of them) they say nothing of the uncertainty:
    the interval is then the widest that a run has over its labels and rows.
    """
    numbers = [values_of(figures.values()) for figures in runs]
    out: dict[str, Any] = {}
    for key in keys:
        if not any(key in one for one in numbers):
            continue
        values = [one.get(key) for one in numbers]
        whole = [float(value) for value in values if value is not None]
        found = out[key] = estimate(whole) if len(whole) == len(values) else None
        spread = [figures[key].interval for figures in runs if key in figures]
        known = [interval for interval in spread if interval is not None]
        if found is not None and known and found["low"] is not None and found["low"] == found["high"]:
            found |= {"low": min(low for low, _ in known), "high": max(high for _, high in known)}
    return out


def _against(members: Sequence[Measured], base: Sequence[Measured]) -> dict[str, Any]:
    """Relative change of the FVU, of its mean over dimensions and of the time per step, paired by seed."""
    before = {one.member.seed: one for one in base}
    out = {}
    for key in ("fvu", "fvu_dims", "step_ms"):
        pairs = [(before[one.member.seed].value(key), one.value(key)) for one in members if one.member.seed in before]
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
    values = [one.value(key) for key in (family, "fvu", "l0", "seconds")]
    return Trained(one.member.seed, *(None if value is None else float(value) for value in values))
