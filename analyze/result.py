"""What a report returns: figures, charts, tables, columns and panels that any renderer can show.

A report knows nothing of Markdown or HTML, and the renderers know nothing of any report: adding a report touches no
other code. Everything is plain data. Numbers that were not scored are None (or NaN in a column), never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Number = float | int | None
Role = Literal["data", "with_bos", "null", "reference"]
TWINS = {"with_bos": "including position 0", "without_massive": "excluding massive rows"}
"""A figure's twins, fields of `Figure`: the same number over other rows, under its key and _with_bos or
_without_massive."""
SHORT_TWINS = {"with_bos": "incl. pos. 0", "without_massive": "excl. massive"}
Format = Literal["number", "integer", "percent", "text", "latent", "flag"]


@dataclass(frozen=True)
class Aim:
    """What training against duplicates is to reach: a value of at most `at_most`."""

    at_most: float
    text: str
    """As a table shows it: "0", "≤ 20%"."""


@dataclass(frozen=True)
class Figure:
    """One headline number of a run, declared once: every table, chart and file that shows it reads what it says here.

    Attributes:
        key: name in JSON, CSV and the sweep's tables.
        label: what a reader sees.
        value: excluding position 0, unless `label` says otherwise.
        definition: one sentence, one click away.
        with_bos: the same over all rows, position 0 included; None where there is no such twin.
        without_massive: the same over ordinary rows, excluding position 0 and massive rows; None where there is no such
            twin, and where the rows under analysis hold no massive one.
        null: the same under the null of this report (shuffled, random, …); None where there is none.
        better: which direction is good, if either.
        in_summary: part of a run's summary (`--json`, CSV).
        short: heading of a column with little room (terminal, sweep); empty: the label.
        interval: 95 % interval of the value over what it is a mean of (labels, rows); None where none is computed.
        aim: what training is to reach; None where it has no such aim.
        terminal: a column of the table that `pipeline analyze` and `pipeline sweep` print.
        before_after: a row of the before/after table of a comparison.
        sweep: a column of the tables of a sweep.
        show_twin: where this figure is a column, its twins are columns too.
    """

    key: str
    label: str
    value: Number
    definition: str
    format: Format = "number"
    with_bos: Number = None
    without_massive: Number = None
    null: Number = None
    better: Literal["lower", "higher", None] = None
    in_summary: bool = True
    short: str = ""
    interval: tuple[float, float] | None = None
    aim: Aim | None = None
    terminal: bool = False
    before_after: bool = False
    sweep: bool = False
    show_twin: bool = False

    @property
    def heading(self) -> str:
        """What a column of it is called."""
        return self.short or self.label

    @property
    def values(self) -> dict[str, Number]:
        """The value and those of its twins that there are, by key."""
        twins = {f"{self.key}_{twin}": number(getattr(self, twin)) for twin in TWINS if getattr(self, twin) is not None}
        return {self.key: number(self.value)} | twins

    def with_twins(self, values: Mapping[str, Number]) -> Figure:
        """With other twins: field of the twin → value; a twin that `values` lacks stays."""
        with_bos = values.get("with_bos", self.with_bos)
        return replace(self, with_bos=with_bos, without_massive=values.get("without_massive", self.without_massive))

    @property
    def keys(self) -> dict[str, str]:
        """Its own key and those of its twins → "" and what a reader calls the twin."""
        return {self.key: ""} | {f"{self.key}_{twin}": name for twin, name in TWINS.items()}

    def columns(self, twins: str = "{} {}") -> list[FigureColumn]:
        """Its columns in a table of runs: itself and, where it shows them, its twins.

        Args:
            twins: heading of a twin's column, the first {} for the figure's own and the second for the twin's.
        """
        own = FigureColumn(self.key, self.heading, self.format, self.definition)
        if not self.show_twin:
            return [own]
        return [
            own,
            *(
                FigureColumn(
                    f"{self.key}_{twin}",
                    twins.format(self.heading, SHORT_TWINS[twin]),
                    self.format,
                    f"{self.label}, {name}.",
                )
                for twin, name in TWINS.items()
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: every field but the key."""
        out: dict[str, Any] = plain(
            {item.name: getattr(self, item.name) for item in fields(self) if item.name != "aim"}
        )
        del out["key"]
        return out | {"aim": None if self.aim is None else asdict(self.aim)}

    @classmethod
    def of(cls, key: str, found: Mapping[str, Any]) -> Figure:
        """The figure of that plain data."""
        interval, aim = found["interval"], found["aim"]
        low_high = None if interval is None else (interval[0], interval[1])
        return cls(key, **{**found, "interval": low_high, "aim": None if aim is None else Aim(**aim)})


@dataclass(frozen=True)
class FigureColumn:
    """A column of a table of runs: a figure's values, or those of one of its twins."""

    key: str
    label: str
    format: Format
    definition: str


def by_key(figures: Iterable[Figure]) -> dict[str, Figure]:
    """Figures of several runs, each declared once, in the order in which they come; of one key the first counts."""
    out: dict[str, Figure] = {}
    for figure in figures:
        out.setdefault(figure.key, figure)
    return out


def values_of(figures: Iterable[Figure]) -> dict[str, Number]:
    """Every headline number by key, twins as key_with_bos and key_without_massive."""
    return {key: value for figure in figures if figure.in_summary for key, value in figure.values.items()}


@dataclass(frozen=True)
class Series:
    """One line or set of bars of a chart. `role` decides its colour everywhere: data, with_bos, null, reference."""

    name: str
    y: Sequence[Number]
    role: Role = "data"


@dataclass(frozen=True)
class Chart:
    """Values over shared x positions (bars: bin edges or categories).

    Attributes:
        x: n numbers for lines; n + 1 edges or n category names for bars.
    """

    key: str
    title: str
    caption: str
    x: Sequence[float | str]
    series: Sequence[Series]
    x_label: str
    y_label: str
    kind: Literal["bars", "lines", "scatter"] = "bars"
    log_y: bool = False
    marks: Sequence[tuple[float, str]] = ()
    """Vertical lines (x, label): thresholds."""
    labels: Sequence[str] = ()
    """Names of the points of a scatter."""


@dataclass(frozen=True)
class TableColumn:
    """A column of a table; `latent` makes its numbers links to the latent's panel, `latents` a list of such; a `remark`
    is a sentence on the row, which the page writes below it."""

    label: str
    format: Literal["number", "integer", "percent", "probability", "text", "remark", "latent", "latents", "flag"] = (
        "number"
    )
    definition: str = ""


@dataclass(frozen=True)
class Table:
    """Rows worth a look. `total` counts all of them; where it exceeds the rows listed, the renderers say so."""

    key: str
    title: str
    caption: str
    columns: Sequence[TableColumn]
    rows: Sequence[Sequence[Any]]
    total: int
    more: str = ""
    """Where the rest is: the name of a file."""


@dataclass(frozen=True)
class Column:
    """One number (or short text) for each latent: a column of the table of latents.

    Attributes:
        values: [F] numbers, NaN = not scored, or texts.
        shown: visible at first.
        without: what a reader sees in place of a missing value; "–" means not scored.
    """

    key: str
    label: str
    definition: str
    values: NDArray[Any] | Sequence[str]
    format: Format = "number"
    shown: bool = True
    without: str = "–"


@dataclass(frozen=True)
class ReportResult:
    """Result of one report on one run.

    Attributes:
        lead: what the report says, in one or two sentences with the numbers in them.
        data: further plain data for JSON.
        panel: latent → blocks for its panel (plain data, see analyze/render/report.js); None: no panel.
        tables_on_disk: name → columns, written as Parquet beside the report.
        definitions: (term, meaning).
    """

    name: str
    title: str
    lead: str
    figures: Sequence[Figure] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    columns: Sequence[Column] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    panel: Callable[[int], list[dict[str, Any]]] | None = None
    tables_on_disk: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    definitions: Sequence[tuple[str, str]] = ()

    def figure(self, key: str) -> Figure:
        """The figure of that key."""
        return next(figure for figure in self.figures if figure.key == key)

    def to_dict(self) -> dict[str, Any]:
        """For report.json: everything but the panels and columns, which have files of their own."""
        return {
            "name": self.name,
            "title": self.title,
            "lead": self.lead,
            "figures": {figure.key: figure.to_dict() for figure in self.figures},
            "charts": [chart_dict(chart) for chart in self.charts],
            "tables": [table_dict(table) for table in self.tables],
            "data": plain(self.data),
        }


def chart_dict(chart: Chart) -> dict[str, Any]:
    """Plain data of a chart."""
    return {
        "key": chart.key,
        "title": chart.title,
        "caption": chart.caption,
        "kind": chart.kind,
        "x": plain(list(chart.x)),
        "series": [{"name": s.name, "role": s.role, "y": plain(list(s.y))} for s in chart.series],
        "x_label": chart.x_label,
        "y_label": chart.y_label,
        "log_y": chart.log_y,
        "marks": plain([list(mark) for mark in chart.marks]),
        "labels": list(chart.labels),
    }


def table_dict(table: Table) -> dict[str, Any]:
    """Plain data of a table."""
    return {
        "key": table.key,
        "title": table.title,
        "caption": table.caption,
        "columns": [{"label": c.label, "format": c.format, "definition": c.definition} for c in table.columns],
        "rows": plain([list(row) for row in table.rows]),
        "total": table.total,
        "more": table.more,
    }


def number(value: Any) -> Number:
    """A JSON number: NumPy scalars unwrapped, NaN and infinities become None."""
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """JSON-able: arrays to lists, NumPy scalars to numbers, NaN to None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, range)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, float, np.generic)):
        return number(value) if not isinstance(value, np.str_) else str(value)
    raise TypeError(f"{type(value).__name__} is not plain data")


def significant(value: Number, digits: int = 3) -> str:
    """0.1234 → "0.123", 1234567 → "1,234,567", None → "–"."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if float(value) == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def show(value: Any, format: str = "number") -> str:
    """A value as a reader sees it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if format == "percent":
        return f"{100 * float(value):.3g}%"
    if format == "probability" and float(value) < 1e-300:  # underflow, not certainty
        return "< 1e-300"
    if format == "flag":
        return "yes" if value else "no"
    if format == "latents":
        return ", ".join(str(item) for item in value)
    if format in ("text", "remark", "latent"):
        return str(value)
    return significant(value)
