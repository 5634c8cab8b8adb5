"""anti_duplication_logs/: one JSON document for each report of the monitors, and a table of their figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...shared.cache.files import read_json, write_file
from .watch import MonitorReport

FOLDER = "anti_duplication_logs"
TABLE = "table.md"


class DuplicationLog:
    """The folder of one run.

    Args:
        run: the run's folder.
        step: the step the run resumes from; reports of later steps are deleted and written again.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / FOLDER
        self._rows: list[dict[str, Any]] = []
        for file in sorted(self.path.glob("step_*.json")):
            if int(file.stem.removeprefix("step_")) > step:
                file.unlink()
            else:
                self._rows.append(_row(read_json(file)))
        if self._rows:
            self._write_table()

    def write(self, report: MonitorReport) -> None:
        """Add a report."""
        self.path.mkdir(exist_ok=True)
        document = report.to_dict()
        text = json.dumps(document, indent=1, allow_nan=False)
        write_file(self.path / f"step_{report.step:08d}.json", [(text + "\n").encode()])
        self._rows.append(_row(document))
        self._write_table()

    def _write_table(self) -> None:
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        lines = [columns, ["---:"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in self._rows)]
        text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        write_file(self.path / TABLE, [text.encode()])


def _row(document: dict[str, Any]) -> dict[str, Any]:
    """The figures of a report, by column."""
    row: dict[str, Any] = {"step": document["step"]}
    for monitor, found in document.items():
        if isinstance(found, dict):
            row |= {
                f"{monitor} {name}": value
                for name, value in found.items()
                if value is None or isinstance(value, int | float)
            }
    return row


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
