"""The figures of each run of a sweep: what training measured, and what the reports say. Made once per coder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...shared.config.settings import identity, to_dict
from ...shared.console import Console
from ...shared.runs.folder import Run, open_run
from ..config import AnalyzeConfig
from ..render.folder import ELSEWHERE
from ..result import Number, number
from ..run import analyze

VERSION = 1
"""Of measured.json; raised when the reports' figures change their meaning."""

NOT_MEASURED = (*ELSEWHERE, "cache", "baseline")
"""Settings of analysis that do not reach the figures of a run."""

LATE = ("stability", "recall")
"""Metrics of penalties that become figures: their mean over the second half of training."""


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        setting: what it shares with the runs that differ in the seed alone.
    """

    setting: str
    seed: int
    path: Path

    @property
    def finished(self) -> bool:
        """Whether there is a finished run."""
        return (self.path / "final" / "config.json").is_file()

    @cached_property
    def run(self) -> Run:
        """The finished run. Raises DataError when it is not."""
        return open_run(self.path)


@dataclass(frozen=True)
class Measured:
    """One run with its figures by key; None where a figure could not be had.

    Attributes:
        role: a frozen decoder makes a run a control.
        untrained: the same figures of its coder as it was before the first step; None where they were not asked for.
        intervals: absorption figure → (low, high), 95 % over labels and rows; `untrained_intervals`: the same of that.
        rows: rows of the cache that the reports looked at.
        report: index.html.
    """

    member: Member
    role: str
    figures: dict[str, Number]
    untrained: dict[str, Number] | None
    rows: int
    report: Path
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    untrained_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def measure_runs(
    members: Sequence[Member], config: AnalyzeConfig, folder: str, controls_of: str, console: Console
) -> list[Measured]:
    """Every run's figures; a run whose coder and settings of analysis are those of an earlier time is not read again.

    Args:
        folder: name of the folder below `config.out` that gets one report per run.
        controls_of: the setting whose untrained coders are measured too (`config.controls`).
    """
    found = []
    for place, member in enumerate(members, 1):
        controls = config.controls and member.setting == controls_of
        own = dataclasses.replace(
            config, out=config.out / folder, name=member.run.name, controls=controls, compare=False
        )
        kept = own.out / member.run.name / "measured.json"
        key = _key(member.run, own)
        document = _read(kept, key)
        if document is None:
            console.info(f"analyze {place} of {len(members)}: {member.run.name}")
            result = analyze([member.path], own, console)
            document = {"key": key, "rows": result.rows, "run": result.runs[0], "controls": result.controls}
            kept.write_text(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1), encoding="utf-8")
        summary, untrained = document["run"], document["controls"][0] if document["controls"] else None
        report = own.out / member.run.name / "index.html"
        found.append(
            Measured(
                member,
                summary["role"],
                _figures(member.run, summary),
                None if untrained is None else _untrained(member.run, untrained),
                document["rows"],
                report,
                *_intervals(report.parent / "report.json"),
            )
        )
    return found


def _key(run: Run, config: AnalyzeConfig) -> str:
    """What the figures depend on: the coder's bits, and what is asked of them."""
    coder = hashlib.sha256((run.path / "final" / "coder.safetensors").read_bytes()).hexdigest()
    asked = {name: value for name, value in to_dict(config).items() if name not in NOT_MEASURED}
    return identity({"version": VERSION, "coder": coder, "cache": run.final["cache"]["identity"], "asked": asked})


def _read(path: Path, key: str) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if document.get("key") == key else None


def _intervals(path: Path) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """Intervals of the run's and of its control's absorption, as the report has them."""
    found: dict[str, dict[str, tuple[float, float]]] = {"trained": {}, "untrained": {}}
    for run in json.loads(path.read_bytes())["runs"]:
        for family in run["reports"].get("absorption", {}).get("data", {}).get("families", ()):
            if family["full"] is not None:
                interval = family["full"]["low"], family["full"]["high"]
                found["trained" if run["trained"] else "untrained"][f"absorption_{family['family']}"] = interval
    return found["trained"], found["untrained"]


def _figures(run: Run, summary: dict[str, Any]) -> dict[str, Number]:
    """The reports' figures; over them what training measured on held-out rows, which goes first."""
    trained = run.summary
    figures = {key: number(value) for key, value in summary.items() if key not in ("name", "role")}
    keys = ("fvu", "fvu_with_bos", "l0", "dead", "steps", "tokens", "seconds")
    figures |= {key: number(trained[key]) for key in keys if key in trained}
    figures["step_ms"] = 1000 * trained["seconds"] / trained["steps"]
    return figures | {name: value for name in LATE if (value := mean_metric(run, f"/{name}")) is not None}


def _untrained(run: Run, summary: dict[str, Any]) -> dict[str, Number]:
    figures = {key: number(value) for key, value in summary.items() if key not in ("name", "role")}
    return figures | {"fvu": number(run.summary.get("fvu_untrained"))}


def mean_metric(run: Run, ending: str) -> float | None:
    """Mean over the second half of training of the metric with that ending; None where there is none."""
    lines = run.metrics()
    late = [line for line in lines if line["step"] > lines[-1]["step"] / 2]
    values = [value for line in late for name, value in line.items() if name.endswith(ending) and value is not None]
    return sum(values) / len(values) if values else None
