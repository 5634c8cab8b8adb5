"""Many runs of one sweep side by side: each measured once, then one table and the plots.

The runs are given as members (`Member`): analysis knows no sweep file, only which run belongs to which setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...shared.console import Console
from ...shared.errors import DataError
from ...shared.page import write_page
from ..config import AnalyzeConfig
from .estimates import Heading, compare_settings
from .files import write_comparison
from .markdown import terminal_table
from .measure import Measured, Member, measure_runs
from .page import PLOTS, sweep_page
from .plots import write_plots

__all__ = ["Heading", "Measured", "Member", "SweepResult", "compare_runs"]


@dataclass(frozen=True)
class SweepResult:
    """The comparison as plain data, and the files it was written to."""

    document: dict[str, Any]
    folder: Path
    files: list[Path]

    def to_dict(self) -> dict[str, Any]:
        """The --json document."""
        return {**self.document, "folder": str(self.folder), "files": [str(path) for path in self.files]}

    def __str__(self) -> str:
        missing = self.document["missing"]
        left = f"\nnot finished: {', '.join(missing)}" if missing else ""
        return f"{terminal_table(self.document)}{left}\ncomparison: {self.folder / 'index.html'}"


def compare_runs(
    heading: Heading,
    members: Sequence[Member],
    config: AnalyzeConfig,
    folder: Path,
    plots: Sequence[str],
    console: Console,
) -> SweepResult:
    """Measure every finished run, and write the tables and the plots into `folder`.

    Raises:
        DataError: no run is finished.
    """
    finished = [member for member in members if member.finished]
    if not finished:
        raise DataError(f"no run of {heading.name} is finished", heading.command)
    settings = {member.setting for member in finished}
    controls_of = heading.baseline if heading.baseline in settings else finished[0].setting
    measured = measure_runs(finished, config, heading.name, controls_of, console)
    document = compare_settings(
        heading, measured, controls_of, [member.path.name for member in members if not member.finished]
    )
    files = write_comparison(document, folder)
    drawn, pictures = write_plots(measured, document, folder, plots, [name for name, _, _ in PLOTS])
    write_page(folder / "index.html", sweep_page(document, pictures))
    files = [*files, *drawn, folder / "index.html"]
    return SweepResult(document, folder, files)
