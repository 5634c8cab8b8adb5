"""The figures of each run of a sweep: what training measured, and what the reports say. Measured once per coder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...shared.cache.files import write_file
from ...shared.config.settings import identity, to_dict
from ...shared.console import Console
from ...shared.errors import DataError
from ...shared.runs.folder import Run, fvu_label, open_run
from ...shared.untrusted import read_object
from ..config import AnalyzeConfig
from ..render.folder import ELSEWHERE
from ..result import TWINS, Figure, Number, number
from ..run import analyze

VERSION = 3
"""Of measured.json; raised when the reports' figures change their meaning."""

NOT_MEASURED = (*ELSEWHERE, "cache", "baseline")
"""Settings of analysis that do not change the figures of a run."""


HELD_OUT = (
    Figure(
        "fvu",
        "held-out FVU",
        None,
        "Fraction of variance unexplained on held-out documents, excluding position 0.",
        better="lower",
        terminal=True,
        sweep=True,
        show_twin=True,
    ),
    Figure(
        "fvu_dims",
        "held-out FVU per dimension",
        None,
        "Mean over dimensions of the FVU of each on held-out documents: every dimension counts alike.",
        better="lower",
        short="FVU per dim.",
        sweep=True,
    ),
    Figure(
        "l0",
        "L0",
        None,
        "Mean number of latents that fire on a held-out row, excluding position 0.",
        terminal=True,
        sweep=True,
    ),
    Figure(
        "dead",
        "dead latents",
        None,
        "Latents that had not fired for `dead_after` tokens when training ended.",
        "integer",
        better="lower",
        short="dead",
        terminal=True,
        sweep=True,
    ),
)
"""What training measures on held-out documents; these override the figures of the reports with the same keys, except
REPORTED."""

REPORTED = ("dead",)
"""Figures of training that a report's own, where there is one, overrides: a latent that fires on none of the report's
rows is dead whatever `dead_after` was, so settings with different `dead_after` compare."""

TRAINING = (
    Figure("steps", "steps", None, "Steps of training.", "integer"),
    Figure("tokens", "tokens", None, "Rows that training saw, repeats included.", "integer"),
    Figure("seconds", "seconds", None, "The run's own time in training.", better="lower", sweep=True),
    Figure(
        "step_ms",
        "ms per step",
        None,
        "The run's own time per step, on the machine named below.",
        better="lower",
        sweep=True,
    ),
    Figure(
        "stability",
        "stability",
        None,
        "Jaccard index of the pairs that the penalty selected at two successive steps, mean of the second half.",
        sweep=True,
    ),
    Figure(
        "recall",
        "recall",
        None,
        "Share of the pairs truly beyond the threshold that the projection nominated, mean of the second half.",
        better="higher",
        sweep=True,
    ),
)
"""What training costs, and what its penalties log about pairs."""

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
    """One run with its figures by key; the value of a figure that could not be evaluated is None.

    Attributes:
        role: a frozen decoder makes a run a control.
        figures: what training measured on held-out documents, what the reports say, what training cost.
        untrained: the same figures of its coder as it was before the first step; None where it was not measured.
        rows: rows of the cache that the reports looked at.
        report: index.html.
    """

    member: Member
    role: str
    figures: dict[str, Figure]
    untrained: dict[str, Figure] | None
    rows: int
    report: Path

    def value(self, key: str) -> Number:
        """The value of a figure; None where there is none."""
        return self.figures[key].value if key in self.figures else None


def measure_runs(
    members: Sequence[Member], config: AnalyzeConfig, folder: str, controls_of: str, console: Console
) -> list[Measured]:
    """Every run's figures; a run with the coder and settings of analysis of an earlier measurement is not read again.

    Args:
        folder: name of the folder below `config.out` that gets one report per run.
        controls_of: the setting whose untrained coders are measured too (`config.controls`).
    """
    found = []
    for place, member in enumerate(members, 1):
        controls = config.controls and member.setting == controls_of
        own = replace(config, out=config.out / folder, name=member.run.name, controls=controls, compare=False)
        kept = own.out / member.run.name / "measured.json"
        key = _key(member.run, own)
        document = _read(kept, key)
        if document is None:
            console.info(f"analyze {place} of {len(members)}: {member.run.name}")
            document = {"key": key, **_measure(member, own, console)}
            write_file(kept, [json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1).encode()])
        said, untrained = _figures(document["figures"]), document["untrained"]
        found.append(
            Measured(
                member,
                document["role"],
                with_training(member.run, said),
                None if untrained is None else before_training(member.run, _figures(untrained)),
                document["rows"],
                kept.with_name("index.html"),
            )
        )
    return found


def _measure(member: Member, config: AnalyzeConfig, console: Console) -> dict[str, Any]:
    """What the reports say of a run and of its untrained coder, as plain data."""
    result = analyze([member.path], config, console)
    (run,) = result.runs
    control = result.controls[0]["name"] if result.controls else None
    plain = {
        name: {key: figure.to_dict() for key, figure in figures.items() if figure.in_summary}
        for name, figures in result.figures.items()
    }
    return {
        "rows": result.rows,
        "role": run["role"],
        "figures": plain[run["name"]],
        "untrained": None if control is None else plain[control],
    }


def _figures(found: dict[str, Any]) -> dict[str, Figure]:
    return {key: Figure.of(key, one) for key, one in found.items()}


def _key(run: Run, config: AnalyzeConfig) -> str:
    """What the figures depend on: the coder's bytes, its cache, and the settings of analysis."""
    coder = hashlib.sha256((run.path / "final" / "coder.safetensors").read_bytes()).hexdigest()
    asked = {name: value for name, value in to_dict(config).items() if name not in NOT_MEASURED}
    return identity({"version": VERSION, "coder": coder, "cache": run.final["cache"]["identity"], "asked": asked})


def _read(path: Path, key: str) -> dict[str, Any] | None:
    try:
        document = read_object(path)
    except DataError:
        return None
    return document if document.get("key") == key else None


def with_training(run: Run, said: dict[str, Figure]) -> dict[str, Figure]:
    """All figures of a run, by key: FVU and L0 as training measured them on held-out documents, which override the
    reports' own; the reports' other figures; what training cost.

    A twin that training did not measure stays the report's.
    """
    ours = {
        figure.key: figure for figure in heldout_figures(run) if not (figure.key in REPORTED and figure.key in said)
    }
    for key, figure in ours.items():
        if key in said:
            twins = {twin: getattr(said[key], twin) for twin in TWINS if getattr(figure, twin) is None}
            ours[key] = figure.with_twins(twins)
    return ours | {key: figure for key, figure in said.items() if key not in ours} | training_figures(run)


def heldout_figures(run: Run) -> list[Figure]:
    """The figures of HELD_OUT that training measured."""
    summary = run.summary
    twins = [twin for twin in TWINS if twin != "without_massive" or summary.get("massive_share")]
    return [
        replace(figure, label=_label(figure, summary), value=number(summary[figure.key])).with_twins(
            {twin: number(summary.get(f"{figure.key}_{twin}")) for twin in twins}
        )
        for figure in HELD_OUT
        if figure.key in summary
    ]


def _label(figure: Figure, summary: Mapping[str, Any]) -> str:
    """Its label; the FVU's says on which rows training measured it."""
    return fvu_label(summary.get("evaluated_on")) if figure.key == "fvu" else figure.label


def training_figures(run: Run) -> dict[str, Figure]:
    """The figures of TRAINING by key; without those that nothing logged."""
    summary = run.summary
    values: dict[str, Number] = {key: number(summary[key]) for key in ("steps", "tokens", "seconds") if key in summary}
    values["step_ms"] = 1000 * summary["seconds"] / summary["steps"]
    values |= {name: value for name in LATE if (value := mean_metric(run, f"/{name}")) is not None}
    return {figure.key: replace(figure, value=values[figure.key]) for figure in TRAINING if figure.key in values}


def before_training(run: Run, said: dict[str, Figure]) -> dict[str, Figure]:
    """The untrained coder's figures; its FVU is the one that training measured before the first step."""
    twins = {twin: getattr(said["fvu"], twin) for twin in TWINS} if "fvu" in said else {}
    return said | {"fvu": replace(HELD_OUT[0], value=number(run.summary.get("fvu_untrained"))).with_twins(twins)}


def mean_metric(run: Run, ending: str) -> float | None:
    """Mean over the second half of training of the metric with that ending; None where there is none."""
    lines = run.metrics()
    late = [line for line in lines if line["step"] > lines[-1]["step"] / 2]
    values = [value for line in late for name, value in line.items() if name.endswith(ending) and value is not None]
    return sum(values) / len(values) if values else None
