"""The plots of a sweep: every curve of training for all runs on one axis, and bars of the final figures."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ...shared.runs.curves import PICKS, Line, last_values, named
from ..result import show
from .measure import Measured

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#8C510A")
"""Okabe and Ito's colours (without yellow, which is too light for lines), and two more."""
GREY = "#999999"
STYLES = ("-", "--", ":", "-.")
"""Line styles, one per round of the colours."""

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "sweep",
}


@dataclass(frozen=True)
class Curve:
    """One panel of the curves.

    Attributes:
        pick: its value in a line of metrics.jsonl, or None.
        log: on a logarithmic axis.
        otherwise: what is drawn where no run logs this one; None: the panel is omitted.
    """

    key: str
    title: str
    pick: Callable[[Line], float | None]
    log: bool = False
    otherwise: Curve | None = None


PER_ROW = Curve("l0", "Active latents per row", named("l0"))
CURVES = (
    Curve("loss", "Total loss", PICKS["loss"], log=True),
    Curve("reconstruction", "L2 (reconstruction)", PICKS["reconstruction"], log=True),
    Curve("sparsity", "Sparsity loss", PICKS["sparsity"], log=True),
    Curve("orthogonality", "Orthogonality loss (weighted)", PICKS["orthogonality"], log=True),
    Curve("active", "Active latents in a batch", PICKS["active"], otherwise=PER_ROW),
    Curve("unique", "Unique latents in the pairs", PICKS["unique"]),
    Curve("max_pair", "Largest correlation of a pair", PICKS["max_pair"]),
    Curve("mean_pair", "Mean correlation of the pairs", PICKS["mean_pair"]),
)
"""Row by row, the panels of the figure of curves; those that no run logged are omitted."""

NESTED_LOSS = "Total loss and L2 of {} are means over the prefixes of the dictionary: not comparable with the others'"
"""Below the title of the curves where some settings are nested and some are not."""

LISTED = 60
"""Characters of names in it; of more settings it says how many."""


def style_of(roles: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Colour and line style of each setting, in order; controls are grey.

    Args:
        roles: setting → run or control.
    """
    n, styles = len(COLOURS), len(STYLES)
    counts = {"run": 0, "control": 0}
    out = {}
    for name, role in roles.items():
        place = counts[role]
        counts[role] += 1
        out[name] = (
            (COLOURS[place % n], STYLES[place // n % styles]) if role == "run" else (GREY, STYLES[place % styles])
        )
    return out


def series(lines: Sequence[Line], curve: Curve) -> tuple[list[int], list[float]]:
    """Steps and values of a curve, where the run logged it (on a logarithmic axis: where it is positive)."""
    steps, values = [], []
    for line in lines:
        value = curve.pick(line)
        if value is not None and math.isfinite(value) and not (curve.log and value <= 0):
            steps.append(int(line["step"]))
            values.append(float(value))
    return steps, values


def curves_figure(measured: Sequence[Measured], title: str, only: str | None = None) -> Figure:
    """All curves of all runs. Each run is a thin line with its name as gid, the mean over a setting's seeds a thick
    one.

    Args:
        only: the key of one curve, for a figure of its own.
    """
    roles = {one.member.setting: one.role for one in measured}
    styles = style_of(roles)
    metrics = [(one, one.member.run.metrics()) for one in measured]
    logged = {curve.key: any(series(lines, curve)[0] for _, lines in metrics) for curve in (*CURVES, PER_ROW)}
    curves = [first if logged[first.key] or first.otherwise is None else first.otherwise for first in CURVES]
    curves = [curve for curve in curves if logged[curve.key] and only in (None, curve.key)]
    note = _nested(measured)
    figure, axes, legend_rows = _panels(len(curves), f"{title}\n{note}" if note else title, len(roles))
    for ax, curve in zip(axes, curves, strict=True):
        drawn: dict[str, list[tuple[list[int], list[float]]]] = {}
        for one, lines in metrics:
            steps, values = series(lines, curve)
            if steps:
                drawn.setdefault(one.member.setting, []).append((steps, values))
        for one, lines in metrics:
            steps, values = series(lines, curve)
            alone = len(drawn.get(one.member.setting, ())) == 1
            colour, dash = styles[one.member.setting]
            if steps:
                width, alpha = (1.5, 0.95) if alone else (0.6, 0.4)
                ax.plot(steps, values, dash, color=colour, lw=width, alpha=alpha, gid=one.member.run.name)
        for setting, members in drawn.items():
            if len(members) > 1 and all(steps == members[0][0] for steps, _ in members):
                colour, dash = styles[setting]
                mean = np.mean([values for _, values in members], axis=0)
                ax.plot(members[0][0], mean, dash, color=colour, lw=1.6, gid=f"mean of {setting}")
        _dress(ax, curve)
    handles = [Line2D([], [], color=colour, ls=dash, lw=2, label=name) for name, (colour, dash) in styles.items()]
    figure.legend(handles=handles, loc="lower center", ncols=-(-len(roles) // legend_rows), frameon=False)
    return figure


def _nested(measured: Sequence[Measured]) -> str:
    """A note that losses over prefixes and over whole dictionaries do not compare; "" where there are not both."""
    nested = {one.member.setting: one.member.run.final["architecture"] == "matryoshka" for one in measured}
    names = [setting for setting, is_nested in nested.items() if is_nested]
    if not 0 < len(names) < len(nested):
        return ""
    listed = ", ".join(names)
    return NESTED_LOSS.format(listed if len(listed) <= LISTED else f"the {len(names)} Matryoshka settings")


def _dress(ax: Axes, curve: Curve) -> None:
    ax.set_title(curve.title, loc="left")
    ax.set_xlabel("step")
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.get_lines()])
    if curve.log and values.max() > 2 * values.min():
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if values.max() < 30 * values.min() else (1,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif values.max() - values.min() < 1e-6 * max(1.0, abs(values.max())):
        ax.set_ylim(0, 1.15 * values.max() or 1)
    ax.margins(x=0.02)


def _panels(n: int, title: str, settings: int) -> tuple[Figure, list[Axes], int]:
    """n panels in rows of at most four, as even as can be; room for the legend below."""
    rows = max(1, -(-n // 4))
    columns = max(1, -(-n // rows))
    width = 13 if n > 1 else 7
    legend_rows = -(-settings // (6 if n > 1 else 3))
    height = (2.45 if n > 1 else 3.6) * rows + 0.5 + 0.2 * title.count("\n") + 0.22 * legend_rows
    bottom = 0.26 * (legend_rows + 0.4) / height
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(rect=(0, bottom, 1, 1 - bottom)))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False)
    flat = list(grid.flat)
    for ax in flat[n:]:
        ax.set_axis_off()
    return figure, flat[:n], legend_rows


def bars_figure(document: Mapping[str, Any], title: str) -> Figure:
    """The final figures of every setting, one panel per column of the tables: a bar with the mean beside it, a whisker
    for the interval over seeds, a dot for each run."""
    rows, columns = document["settings"], document["columns"]
    names = [row["setting"] for row in rows]
    styles = style_of({row["setting"]: row["role"] for row in rows})
    n_rows = -(-len(columns) // 4)
    figure = Figure(figsize=(13, n_rows * (0.75 + 0.24 * len(rows)) + 0.5), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    grid = figure.subplots(n_rows, 4, squeeze=False, sharey=True)
    for ax, column in zip(grid.flat, columns, strict=False):
        percent = column["format"] == "percent"
        scale = 100 if percent else 1
        tops = [_bar(ax, place, row, document, column["key"], scale, styles) for place, row in enumerate(rows)]
        ax.set_title(column["label"] + (" (%)" if percent else ""), loc="left")
        ax.set_xlim(0, 1.25 * max(tops) if max(tops) > 0 else 1)
        ax.set_yticks(range(len(names)), names)
        ax.grid(visible=False, axis="y")
    grid.flat[0].invert_yaxis()  # the first setting on top; all panels share the axis
    for ax in list(grid.flat)[len(columns) :]:
        ax.set_axis_off()
    return figure


def _bar(
    ax: Axes,
    place: int,
    row: Mapping[str, Any],
    document: Mapping[str, Any],
    key: str,
    scale: int,
    styles: Mapping[str, tuple[str, str]],
) -> float:
    """Draws one figure of one setting as the bar at `place`; returns how far it reaches (0 where there is no value)."""
    value = row["figures"].get(key)
    if value is None:
        text = "not evaluable" if key in row["figures"] else "–"
        ax.text(0.02, place, text, va="center", color="#666666", fontsize=8, transform=ax.get_yaxis_transform())
        return 0.0
    mean = reach = scale * value["mean"]
    ax.barh(place, mean, height=0.72, color=styles[row["setting"]][0], alpha=0.85, gid=f"{key} {row['setting']}")
    if value["low"] is not None:
        # Student's interval of a count or share may reach below 0, where none can be: it is drawn from 0 on.
        low, high = max(0.0, scale * value["low"]), scale * value["high"]
        ax.plot([low, high], [place, place], color="black", lw=1)
        reach = max(reach, high)
    dots = [run.get(key) for run in document["runs"] if run["setting"] == row["setting"]]
    shown = [scale * dot for dot in dots if dot is not None]
    if len(shown) > 1:
        ax.plot(shown, [place] * len(shown), "o", color="black", ms=2.2, alpha=0.7)
    reach = max([reach, *shown])
    ax.annotate(show(mean), (reach, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    return float(reach)


def training_document(measured: Sequence[Measured]) -> dict[str, Any]:
    """The last value of each curve of training, in the form that `bars_figure` draws; curves that no run logged are
    omitted."""
    found: list[dict[str, Any]] = [
        {"setting": one.member.setting, **last_values(one.member.run.metrics())} for one in measured
    ]
    columns = [
        {"key": curve.key, "label": curve.title, "format": "number"}
        for curve in CURVES
        if any(run[curve.key] is not None for run in found)
    ]
    roles = {one.member.setting: one.role for one in measured}
    rows = []
    for setting, role in roles.items():
        figures = {}
        for column in columns:
            key = str(column["key"])
            values = [float(run[key]) for run in found if run["setting"] == setting and run[key] is not None]
            if values:
                figures[key] = {"mean": float(np.mean(values)), "low": None, "high": None}
        rows.append({"setting": setting, "role": role, "figures": figures})
    return {"settings": rows, "columns": columns, "runs": found}


FRONTIERS = (
    ("l0", "fvu", "L0", "FVU"),
    ("latents", "fvu", "latents in the dictionary", "FVU"),
    ("fvu", "n_pairs_above", "FVU", "correlated pairs"),
)
"""Panels of the frontiers: what is over what, by key of a run's figures."""


def frontier_figure(measured: Sequence[Measured], title: str) -> Figure | None:
    """FVU against sparsity and against size, pairs against FVU: one point per run, with its setting as gid.

    A panel is drawn where runs differ in what it is over, and have both figures; None where there is no panel.
    """
    roles = {one.member.setting: one.role for one in measured}
    points: list[dict[str, Any]] = []
    for one in measured:
        sizes = {"latents": one.member.run.final["coder"]["latents"]}
        points.append(
            {"setting": one.member.setting, **sizes, **{key: one.value(key) for key in ("l0", "fvu", "n_pairs_above")}}
        )
    panels = []
    for x, y, x_label, y_label in FRONTIERS:
        both = [point for point in points if point[x] is not None and point[y] is not None]
        if len({round(float(point[x]), 6) for point in both}) > 1:
            panels.append((x, y, x_label, y_label, both))
    if not panels:
        return None
    styles = style_of(roles)
    figure, axes, legend_rows = _panels(len(panels), title, len(roles))
    for ax, (x, y, x_label, y_label, both) in zip(axes, panels, strict=True):
        for setting, (colour, _) in styles.items():
            these = [point for point in both if point["setting"] == setting]
            if these:
                xs, ys = [point[x] for point in these], [point[y] for point in these]
                ax.plot(xs, ys, "o", ms=5, color=colour, alpha=0.85, gid=setting)
        ax.set_title(f"{y_label} against {x_label}", loc="left")
        ax.set_xlabel(x_label)
        # room for the marker of the highest point, wherever the lowest lies
        ax.set_ylim(0, 1.08 * max(float(point[y]) for point in both) or 1)
        if x == "latents":
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    handles = [Line2D([], [], color=c, ls="", marker="o", label=name) for name, (c, _) in styles.items()]
    figure.legend(handles=handles, loc="lower center", ncols=-(-len(roles) // legend_rows), frameon=False)
    return figure


def write_plots(
    measured: Sequence[Measured],
    document: Mapping[str, Any],
    folder: Path,
    kinds: Sequence[str],
    embedded: Sequence[str] = (),
) -> tuple[list[Path], dict[str, bytes]]:
    """curves, each curve alone (curve-KEY), bars, training (last values of the curves) and frontiers in `folder`; the
    same bytes for the same runs.

    Args:
        embedded: names of plots that are also returned.

    Returns:
        The files, and name → PNG of those plots that there are.
    """
    from matplotlib import rc_context

    written, pictures = [], {}
    with rc_context(STYLE):  # type: ignore[arg-type]
        for name, figure in plots(measured, document).items():
            if "png" in kinds or name in embedded:
                pictures[name] = _png(figure)
            for kind in kinds:
                path = folder / f"{name}.{kind}"
                if kind == "png":
                    path.write_bytes(pictures[name])
                else:
                    figure.savefig(path, dpi=110, metadata={"Date": None} if kind == "svg" else {})
                written.append(path)
    return written, {name: png for name, png in pictures.items() if name in embedded}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png", metadata={"Software": None})
    return buffer.getvalue()


def plots(measured: Sequence[Measured], document: Mapping[str, Any]) -> dict[str, Figure]:
    """Name of a file → its figure; none of them has an empty panel."""
    title = str(document["title"])
    training = training_document(measured)
    figures = {"curves": curves_figure(measured, title), "bars": bars_figure(document, title)}
    if training["columns"]:
        figures["training"] = bars_figure(training, f"{title}: at the end of training")
    if (frontiers := frontier_figure(measured, title)) is not None:
        figures["frontiers"] = frontiers
    curves = [ax.get_title(loc="left") for ax in figures["curves"].axes if ax.get_title(loc="left")]
    for curve in (*CURVES, PER_ROW):
        if curve.title in curves:
            figures[f"curve-{curve.key}"] = curves_figure(measured, title, curve.key)
    return figures
