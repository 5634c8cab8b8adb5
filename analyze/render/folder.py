"""The folder of a report: its name, and whether its contents may be replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...shared.config.settings import to_dict
from ...shared.errors import DataError, UsageError
from ...shared.provenance import provenance
from ...shared.runs.explanations import explanations_of
from ...shared.runs.folder import Run
from ...shared.untrusted import read_object
from ..config import AnalyzeConfig, usual_reports
from ..result import plain
from ..subject.analysed import labelled_by, training_facts

LONGEST = 80
"""Characters of the runs' part of a folder's name; a longer list becomes a number and a hash."""

ELSEWHERE = ("out", "name", "device", "processes")
"""Settings of where a report is written and how it is computed; they do not change its contents."""


def report_folder(config: AnalyzeConfig, names: Sequence[str]) -> Path:
    """`analyze.name`, or a name from its runs, its reports where they are not the default ones, and its cache."""
    if config.name:
        return config.out / config.name
    runs = "+".join(name.replace("/", "_") for name in names)
    if len(runs) > LONGEST:
        runs = f"{len(names)}_runs-{hashlib.sha256(runs.encode()).hexdigest()[:8]}"
    usual = usual_reports()
    added = [name for name in config.reports if name not in usual]
    if usual.keys() - config.reports.keys():
        runs += f"-only-{'-'.join(config.reports)}"
    elif added:
        runs += f"-with-{'-'.join(added)}"
    if config.cache is not None:
        runs += f"-on-{config.cache.resolve().name}"
    return config.out / runs


def check_folder(folder: Path, schema: str, config: AnalyzeConfig, runs: Sequence[Path]) -> None:
    """Check that `folder` may be replaced: it is empty or holds a report on the same runs with the same settings.

    A folder named in the settings (`analyze.name`) may hold any report of this program.

    Raises:
        UsageError: it holds another report, or something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    found = _document(folder)
    if found is None or found.get("schema") != schema:
        raise UsageError(
            f"{folder} exists and is not a report of this program", "--set analyze.name=NAME for another folder"
        )
    if config.name:
        return
    differences = _differences(found, config, runs)
    if differences:
        raise UsageError(
            f"{folder} holds a report with other settings ({', '.join(differences)})",
            f"--set analyze.name=NAME for another folder, --set analyze.name={folder.name} to replace that report",
        )


def standing(folder: Path, schema: str, config: AnalyzeConfig, runs: Sequence[Run]) -> dict[str, Any] | None:
    """report.json of `folder` if the same report would be made again: same settings, runs, labels of their latents and
    program; else None."""
    found = _document(folder)
    if found is None or found.get("schema") != schema or found.get("made_with") != plain(provenance()):
        return None
    facts = [entry["facts"] for entry in found["runs"] if entry["facts"]["trained"]]
    labels = [labelled_by(explanations_of(run.path, run.final["sha256"])) for run in runs]
    trained = [[one["training"], one["settings"], one.get("explanations")] for one in facts]
    now = [[training_facts(run), run.final.get("training", {}), of] for run, of in zip(runs, labels, strict=True)]
    if trained != plain(now):
        return None
    return None if _differences(found, config, [run.path for run in runs]) else found


def _document(folder: Path) -> dict[str, Any] | None:
    """report.json of a folder with the parts that are compared; None where it is not whole."""
    try:
        found = read_object(folder / "report.json")
        for entry in found["runs"]:
            _ = (str(entry["facts"]["trained"]), Path(entry["facts"].get("path", "")))
    except (DataError, KeyError, TypeError, AttributeError):
        return None
    return found if isinstance(found.get("config", {}), dict) else None


def _differences(found: dict[str, Any], config: AnalyzeConfig, runs: Sequence[Path]) -> list[str]:
    """Dotted settings in which a report.json differs from `config`; "the runs" where it has other runs."""
    there, now = _flat(found.get("config", {}), "analyze"), _flat(plain(to_dict(config)), "analyze")
    out = [key for key in dict.fromkeys((*now, *there)) if there.get(key) != now.get(key)]
    out = [key for key in out if key not in {f"analyze.{name}" for name in ELSEWHERE}]
    before = [entry["facts"]["path"] for entry in found.get("runs", ()) if "path" in entry.get("facts", {})]
    return ["the runs", *out] if [Path(path).resolve() for path in before] != [p.resolve() for p in runs] else out


def _flat(settings: dict[str, Any], where: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= _flat(value, f"{where}.{key}") if isinstance(value, dict) else {f"{where}.{key}": value}
    return out
