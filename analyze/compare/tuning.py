"""What end-to-end tuning changed in the runs that were tuned, as `pipeline tune` measured it."""

from __future__ import annotations

from collections.abc import Sequence

from ...shared.runs.tuned import before_and_after
from ..result import Table, TableColumn, show
from ..subject.analysed import Analysed


def tuning_table(runs: Sequence[Analysed]) -> Table | None:
    """Figures before and after, two columns for each tuned run; None if no run was tuned."""
    tuned = {one.subject.name: found for one in runs if (found := one.facts["training"].get("tuned"))}
    if not tuned:
        return None
    columns, cells = [TableColumn("figure", "text")], []
    for name, found in tuned.items():
        columns += [TableColumn(f"{found['of']}, before", "text"), TableColumn(name, "text")]
        cells.append(before_and_after(found))
    rows: list[list[object]] = []
    for of_runs in zip(*cells, strict=True):
        shown = [show(value, "number") for _, *values in of_runs for value in values]
        rows.append([of_runs[0][0], *shown])
    return Table(
        "tuning",
        "End-to-end tuning",
        "What pipeline tune measured before and after, on held-out documents. Position 0, and rows that the run's "
        "sampler excludes, keep their activations and do not count.",
        columns,
        rows,
        len(rows),
    )
