"""The figures of finished runs, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...shared.runs.folder import fvu_label
from ...shared.text_table import explained_table


@dataclass(frozen=True)
class RunSummary:
    """The figures of a finished run; FVU and L0 on held-out documents, if there are any.

    `seconds` is the time spent in the run's own steps. `fvu_untrained` is the same coder's before its first step: the
    control to read `fvu` against. `evaluated_on` is "heldout" or "train". `fvu_dims` is the mean over dimensions of the
    FVU of each; `…_without_massive` exclude the target's massive rows. `outlying_share` and `massive_share`: shares of
    the target's variance (excluding position 0) in its outlying dimensions and in its massive rows. `note` says in
    words where `fvu` is mostly about a few dimensions. `fvu_ema`: of the coder with averaged weights (train.ema).
    `by_site`: of a coder of several sites, the FVU figures of each; the others then count each site in units of its own
    variance. `nonfinite_rows`: rows left out because they hold an infinity or a NaN.
    `moved`: cosines between the rows that a run started from (train.init) and those that it ended with. `record`: what
    the run was and ended with, as in final/record.json.
    """

    name: str
    path: str
    variant: str | None
    steps: int
    tokens: int
    fvu: float | None
    fvu_with_bos: float | None
    l0: float | None
    dead: int
    seconds: float
    fvu_untrained: float | None
    evaluated_on: str | None = None
    fvu_dims: float | None = None
    fvu_without_massive: float | None = None
    fvu_dims_without_massive: float | None = None
    outlying_share: float | None = None
    massive_share: float | None = None
    note: str | None = None
    fvu_ema: float | None = None
    by_site: dict[str, dict[str, float | None]] | None = None
    moved: dict[str, Any] | None = None
    nonfinite_rows: int | None = None
    record: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return runs_text([self])


COLUMNS = {
    "fvu": "",  # its label says on which rows
    "fvu_with_bos": "incl. pos. 0",
    "fvu_dims": "per dim.",
    "fvu_untrained": "untrained",
    "fvu_ema": "averaged",
}
"""Figures of a run in its table, by heading."""


def runs_text(runs: Sequence[RunSummary]) -> str:
    """Runs as rows of a table with a legend; below it what else there is to say, and where they are. "" without any."""
    if not runs:
        return ""
    labels = {fvu_label(run.evaluated_on) for run in runs}
    label = labels.pop() if len(labels) == 1 else "FVU"  # of several kinds of rows: the notes say which
    shown = [key for key in COLUMNS if any(getattr(run, key) is not None for run in runs)]
    header = ["run", *(COLUMNS[key] or label for key in shown), "L0", "dead"]
    rows = []
    for run in runs:
        l0 = "–" if run.l0 is None else f"{run.l0:.1f}"
        figures = [_figure(getattr(run, key)) for key in shown]
        rows.append([run.name, *figures, l0, f"{run.dead:,}"])
        for site, found in (run.by_site or {}).items():
            rows.append([f"  {site}", *(_figure(found.get(key)) for key in shown), "", ""])
    notes = [f"{run.name}: {fvu_label(run.evaluated_on)}" for run in runs] if labels else []
    notes += [note for run in runs for note in _notes(run)]
    return "\n".join([explained_table(rows, header, breaks=0), *notes, *map(_place, runs)])


def _place(run: RunSummary) -> str:
    return f"→ {run.path}: {run.steps:,} steps in {run.seconds:.1f} s"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _notes(run: RunSummary) -> list[str]:
    notes = []
    if run.moved is not None:
        median = run.moved["w_dec"]["median"]
        notes.append(f"{run.moved['latents']:,} latents at a median cosine of {median:.3f} to their start")
    if run.nonfinite_rows:
        notes.append(f"{run.nonfinite_rows:,} rows that are not finite left out")
    if run.note is not None:
        notes.append(f"note: {run.note}")
    return [f"{run.name}: {note}" for note in notes]
