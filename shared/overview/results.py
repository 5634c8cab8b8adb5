"""Reports and sweeps on disk, and which runs they cover."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..saved_report import open_report

COMPARISON, SWEEP_SCHEMA = "comparison.json", "sparse-coder-sweep"


def reports_in(folder: Path) -> Iterator[dict[str, Any]]:
    """The reports of `pipeline analyze` in a folder, by name: {"name", "path", "runs", "covers"}.

    `runs` are the names of the trained runs in it, `covers` their folders. What is no report, or damaged, is skipped:
    it is named when it is opened.
    """
    for file in sorted(folder.glob("*/report.json")):
        try:
            document = open_report(file).document
            trained = [run for run in document["runs"] if run["trained"]]
            yield {
                "name": file.parent.name,
                "path": str(file.parent / "index.html"),
                "runs": [str(run["name"]) for run in trained],
                "covers": [str(Path(run["facts"]["path"]).resolve()) for run in trained if "path" in run["facts"]],
            }
        except (DataError, KeyError, TypeError, AttributeError):
            continue


def sweeps_in(folder: Path, runs: Path) -> Iterator[dict[str, Any]]:
    """The sweeps in a folder, by name: {"name", "path", "settings", "runs", "missing", "covers"}.

    Args:
        runs: the folder of the runs.
    """
    for file in sorted([*folder.glob(f"*/{COMPARISON}"), *folder.glob(f"*/*/{COMPARISON}")]):
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if document["schema"] != SWEEP_SCHEMA:
                continue
            page = file.parent / "index.html"
            yield {
                "name": str(file.parent.relative_to(folder)),
                "path": str(page if page.is_file() else file.parent / "comparison.md"),
                "settings": len(document["settings"]),
                "runs": [str(run["run"]) for run in document["runs"]],
                "missing": len(document["missing"]),
                "covers": [str((runs / str(run["run"])).resolve()) for run in document["runs"]],
            }
        except (OSError, ValueError, KeyError, TypeError):
            continue
