"""The comparison of a sweep: means and intervals against scipy, the plots' data against metrics.jsonl."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.correlation.config import CorrelationConfig
from sparse_pipeline.analyze.reports.reconstruction.config import ReconstructionConfig
from sparse_pipeline.analyze.result import Figure as ReportFigure
from sparse_pipeline.analyze.sweep import Heading, Measured, Member, compare_runs
from sparse_pipeline.analyze.sweep.estimates import compare_settings
from sparse_pipeline.analyze.sweep.files import to_csv, write_comparison
from sparse_pipeline.analyze.sweep.markdown import terminal_table, to_markdown
from sparse_pipeline.analyze.sweep.measure import measure_runs
from sparse_pipeline.analyze.sweep.page import sweep_page
from sparse_pipeline.analyze.sweep.plots import CURVES, bars_figure, curves_figure, frontier_figure, training_document
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.errors import DataError
from sparse_pipeline.shared.page import write_page
from sparse_pipeline.shared.runs.folder import Run, create_run
from tests.analyze.planted import Planted, planted, run_extra
from tests.browser import faults_of, needs_chromium
from tests.sealed import reseal

HEADING = Heading(
    name="s",
    title="A sweep",
    about="What it asks.",
    baseline="plain",
    command="pipeline sweep s.yaml",
    machine="a machine",
)
QUIET = Console(quiet=True)
FVU = {"plain": (0.30, 0.31, 0.29), "pairs": (0.303, 0.312, 0.294), "frozen": (0.7, 0.72, 0.71)}
STEPS = (1, 10, 20, 30)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted(tmp_path_factory.mktemp("planted") / "cache")


def metrics_of(setting: str, seed: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in STEPS:
        line = {
            "step": step,
            "loss": (2.0 + seed) / step,
            "reconstruction": 1.0 / step,
            "l0": 16.0,
            "active": 60 - step,
        }
        if setting == "pairs":
            line |= {
                "topk_pairs": 0.5 * step, "topk_pairs/weight": 0.1, "topk_pairs/unique_latents": 10 + step,
                "topk_pairs/max_overlap": 0.9 / step, "topk_pairs/mean_overlap": 0.4 / step,
                "topk_pairs/stability": 0.01 * (step + seed),
            }  # fmt: skip
        lines.append(line)
    return lines


@pytest.fixture(scope="module")
def members(source: Planted, tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    """Three settings of three seeds; the coder is the planted one, the figures of training are written by hand."""
    folder = tmp_path_factory.mktemp("runs")
    out = []
    for setting, values in FVU.items():
        for seed, fvu in enumerate(values):
            run = create_run(folder, f"s-{setting}-seed{seed}", {"seed": seed}, {})
            for line in metrics_of(setting, seed):
                run.log(line)
            summary = {"steps": 30, "tokens": 300, "fvu": fvu, "fvu_with_bos": fvu + 0.01, "l0": 16.0, "dead": seed}
            extra = run_extra(source.cache)
            training = {"seed": seed, "freeze": ["w_dec"] if setting == "frozen" else []}
            seconds = (1.0 + 0.1 * seed) * (1.5 if setting == "pairs" else 1.0)
            run.finish(
                source.coder, {**summary, "seconds": seconds, "fvu_untrained": 1.0}, {**extra, "training": training}
            )
            out.append(Member(setting, seed, run.path))
    return out


@pytest.fixture(scope="module")
def measured(members: list[Member], tmp_path_factory: pytest.TempPathFactory) -> list[Measured]:
    config = AnalyzeConfig(
        out=tmp_path_factory.mktemp("reports"),
        reports={"correlation": CorrelationConfig(), "global": ReconstructionConfig()},
        max_tokens=5000,
    )
    return measure_runs(members, config, "s", "plain", QUIET)


def setting_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in document["settings"] if row["setting"] == name)
    return found


def test_intervals_over_seeds_are_scipys(measured: list[Measured]) -> None:
    document = compare_settings(HEADING, measured, "plain")
    for setting, values in FVU.items():
        found = setting_of(document, setting)["figures"]["fvu"]
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (found["mean"], found["low"], found["high"]) == pytest.approx((np.mean(values), low, high))
        assert found["n"] == 3
    against = setting_of(document, "pairs")["against"]
    changes = np.array(FVU["pairs"]) / np.array(FVU["plain"]) - 1
    low, high = stats.t.interval(0.95, 2, changes.mean(), stats.sem(changes))
    assert [against["fvu"][key] for key in ("mean", "low", "high")] == pytest.approx([changes.mean(), low, high])
    assert against["step_ms"]["mean"] == pytest.approx(0.5)
    assert setting_of(document, "plain")["against"] == {}
    assert [row["role"] for row in document["settings"]] == ["run", "run", "control", "control"]
    assert setting_of(document, "untrained (plain)")["figures"]["fvu"]["mean"] == 1.0


def test_the_table_has_the_numbers_of_the_runs_and_of_their_reports(measured: list[Measured]) -> None:
    document = compare_settings(HEADING, measured, "plain")
    assert len(document["runs"]) == 9
    for one, row in zip(measured, document["runs"], strict=True):
        run = one.member.run
        assert (row["run"], row["setting"], row["seed"]) == (run.name, one.member.setting, one.member.seed)
        for key in ("fvu", "fvu_with_bos", "l0", "seconds"):
            assert row[key] == run.summary[key]
        assert row["step_ms"] == pytest.approx(1000 * run.summary["seconds"] / 30)
        report = json.loads((one.report.parent / "report.json").read_text())["runs"][0]["reports"]
        pairs = report["correlation"]["figures"]["n_pairs_above"]
        assert (row["n_pairs_above"], row["n_pairs_above_with_bos"]) == (pairs["value"], pairs["with_bos"])
        for key in ("mean_max_cosine", "dead"):
            assert row[key] == report["global"]["figures"][key]["value"]
    stability = [row.get("stability") for row in document["runs"]]
    assert stability[:3] == [None] * 3
    # Of the lines in the second half, at steps 20 and 30.
    assert stability[3:6] == pytest.approx([0.01 * (25 + seed) for seed in range(3)])
    read = list(csv.DictReader(io.StringIO(to_csv(document))))
    assert [float(row["fvu"]) for row in read] == [row["fvu"] for row in document["runs"]]
    assert [row["n_pairs_above"] for row in read] == [str(row["n_pairs_above"]) for row in document["runs"]]


def test_what_was_measured_is_not_measured_again(
    measured: list[Measured], members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparse_pipeline.analyze.sweep import measure as module

    out = measured[0].report.parent.parent.parent
    reports: Any = {"correlation": CorrelationConfig(), "global": ReconstructionConfig()}
    config = AnalyzeConfig(out=out, reports=reports, max_tokens=5000)
    seen: list[Path] = []
    real = module.analyze

    def counted(runs: Any, *rest: Any) -> Any:
        seen.extend(runs)
        return real(runs, *rest)

    monkeypatch.setattr(module, "analyze", counted)
    again = measure_runs(members, config, "s", "plain", QUIET)
    assert [one.figures for one in again] == [one.figures for one in measured]
    assert seen == []
    measure_runs(members[:1], AnalyzeConfig(out=out, reports=reports, max_tokens=3000), "s", "plain", QUIET)
    assert seen == [members[0].path], "other settings of analysis are another measurement"


def lines_of(figure: Figure, panel: int) -> dict[str, tuple[list[float], list[float]]]:
    lines = figure.axes[panel].get_lines()
    return {str(line.get_gid()): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}  # type: ignore[arg-type]


def test_curves_are_the_metrics(measured: list[Measured]) -> None:
    figure = curves_figure(measured, "title")
    drawn = [curve for curve in CURVES if curve.key != "sparsity"]  # which no run has
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.axison] == [curve.title for curve in drawn]
    places = {curve.key: place for place, curve in enumerate(drawn)}
    assert len(places) == 7
    losses = lines_of(figure, places["loss"])
    for one in measured:
        lines = one.member.run.metrics()
        assert losses[one.member.run.name] == (list(STEPS), [line["loss"] for line in lines])
    x, y = losses["mean of plain"]
    assert x == list(STEPS)
    assert y == pytest.approx([3.0 / step for step in STEPS])
    assert lines_of(figure, places["active"])["s-plain-seed0"][1] == [60 - step for step in STEPS]
    expected = {
        "orthogonality": [0.05 * step for step in STEPS],
        "unique": [10 + step for step in STEPS],
        "max_pair": [0.9 / step for step in STEPS],
        "mean_pair": [0.4 / step for step in STEPS],
    }
    for key, values in expected.items():
        found = lines_of(figure, places[key])
        assert found["s-pairs-seed1"][1] == pytest.approx(values)
        assert not any(name.startswith("s-plain") for name in found), "what a run did not log is not drawn as 0"
    figure.draw_without_rendering()
    assert len({round(axes.get_position().height, 3) for axes in figure.axes if axes.axison}) == 1
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == list(FVU)


def test_a_plain_sweep_has_no_empty_panels_and_says_what_does_not_compare(
    source: Planted, measured: list[Measured], tmp_path: Path
) -> None:
    plain = [one for one in measured if one.member.setting == "plain"]
    figure = curves_figure(plain, "title")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Total loss",
        "L2 (reconstruction)",
        "Active latents in a batch",
    ]
    assert figure.get_suptitle() == "title"
    nested = dataclasses.replace(plain[0], member=Member("nested", 0, copy_of(plain[0].member.path, tmp_path / "n")))
    assert curves_figure([*plain, nested], "title").get_suptitle() == (
        "title\nTotal loss and L2 of nested are means over the prefixes of the dictionary: "
        "not comparable with the others'"
    )
    assert curves_figure([nested], "title").get_suptitle() == "title"


def copy_of(run: Path, folder: Path) -> Path:
    """The run again, as one that says it is nested."""
    shutil.copytree(run, folder)
    config = folder / "final" / "config.json"
    reseal(config, lambda document: document.update(architecture="matryoshka"))
    return folder


def test_an_interval_is_drawn_where_the_figure_can_be(members: list[Member]) -> None:
    """0, 0 and 2 pairs: Student's interval begins at −2.2."""
    counts = [fake("plain", seed, None, members[seed].run, n_pairs_above=n) for seed, n in enumerate((0, 0, 2))]
    document = compare_settings(HEADING, counts, "plain")
    low, high = stats.t.interval(0.95, 2, 2 / 3, stats.sem([0, 0, 2]))
    assert low < 0
    (pairs,) = [ax for ax in bars_figure(document, "t").axes if ax.get_title(loc="left") == "n_pairs_above"]
    assert list(pairs.get_lines()[0].get_xdata()) == [0, pytest.approx(high)]
    assert f"[{low:.3g}, {high:.3g}]" in to_markdown(document)  # the tables say what the formula says


def test_bars_are_the_table(measured: list[Measured]) -> None:
    document = compare_settings(HEADING, measured, "plain")
    figure = bars_figure(document, "title")
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes}
    widths = {str(bar.get_gid()): bar.get_width() for bar in by_title["FVU"].patches}  # type: ignore[attr-defined]
    means = {f"fvu {row['setting']}": row["figures"]["fvu"]["mean"] for row in document["settings"]}
    assert widths == pytest.approx(means)
    assert "0.303" in {text.get_text() for text in by_title["FVU"].texts}


def test_one_curve_is_a_figure_of_its_own(measured: list[Measured]) -> None:
    figure = curves_figure(measured, "title", "loss")
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "Total loss"
    assert lines_of(figure, 0) == lines_of(curves_figure(measured, "title"), 0)


def test_bars_of_training_are_the_last_lines_of_metrics(measured: list[Measured]) -> None:
    document = training_document(measured)
    assert [column["key"] for column in document["columns"]] == [c.key for c in CURVES if c.key != "sparsity"]
    last = STEPS[-1]
    rows = {row["setting"]: row["figures"] for row in document["settings"]}
    assert rows["plain"]["loss"]["mean"] == pytest.approx(3.0 / last)
    assert rows["pairs"]["unique"]["mean"] == pytest.approx(10 + last)
    assert "unique" not in rows["plain"], "what a run did not log is no bar"
    bars_figure(document, "title").draw_without_rendering()


def test_frontiers_are_drawn_where_runs_differ(measured: list[Measured], members: list[Member]) -> None:
    runs = [
        fake("plain", k, None, members[k].run, fvu=0.1 * (k + 1), l0=8.0 * (k + 1), n_pairs_above=k) for k in range(2)
    ]
    figure = frontier_figure(runs, "title")
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles == ["FVU against L0", "correlated pairs against FVU"], "all have one size: no panel for it"
    (points,) = figure.axes[0].get_lines()
    assert (list(points.get_xdata()), list(points.get_ydata())) == ([8.0, 16.0], pytest.approx([0.1, 0.2]))
    assert frontier_figure(runs[:1], "title") is None


def test_the_highest_point_of_a_frontier_is_whole(members: list[Member]) -> None:
    near = [
        fake("plain", k, None, members[k].run, fvu=0.57 + 0.01 * k, l0=8.0 * (k + 1), n_pairs_above=k) for k in range(2)
    ]
    figure = frontier_figure(near, "title")
    assert figure is not None
    figure.draw_without_rendering()
    ax = figure.axes[0]
    (points,) = ax.get_lines()
    highest = ax.transData.transform(points.get_xydata())[:, 1].max()
    assert highest + points.get_markersize() / 2 * figure.dpi / 72 <= ax.bbox.y1


def fake(
    setting: str,
    seed: int,
    absorption: float | None,
    run: Run,
    spread: tuple[float, float] | None = None,
    **values: float | None,
) -> Measured:
    rate = ReportFigure("absorption_capitalised", "absorption", absorption, "", "percent", interval=spread, sweep=True)
    base: dict[str, float | None] = {"fvu": 0.3, "l0": 16.0, "seconds": 10.0, "step_ms": 1.0}
    figures = [ReportFigure(key, key, value, "", sweep=True) for key, value in (base | values).items()]
    return Measured(
        Member(setting, seed, run.path), "run", {one.key: one for one in (*figures, rate)}, None, 100, Path("x")
    )


def test_absorption_and_its_efficiency(members: list[Member]) -> None:
    run = members[0].run
    rates = {"plain": (0.4, 0.5, 0.44), "pairs": (0.2, 0.25, 0.33), "blind": (0.1, None, 0.1)}
    costs = {"plain": (0.3, 10.0), "pairs": (0.309, 12.0), "blind": (0.3, 10.0)}
    measured = [
        fake(setting, seed, rate, run, fvu=costs[setting][0], seconds=costs[setting][1])
        for setting, values in rates.items()
        for seed, rate in enumerate(values)
    ]
    document = compare_settings(HEADING, measured, "plain")
    pairs, blind = document["efficiency"]
    reductions = np.array([0.5, 0.5, 0.25])
    low, high = stats.t.interval(0.95, 2, reductions.mean(), stats.sem(reductions))
    assert [pairs[key] for key in ("reduction", "low", "high")] == pytest.approx([reductions.mean(), low, high])
    assert pairs["per_fvu"] == pytest.approx(reductions.mean() / 0.03)
    assert pairs["per_time"] == pytest.approx(reductions.mean() / 0.2)
    assert blind["status"] == "absorption was not evaluable (seed 1)"
    assert setting_of(document, "blind")["figures"]["absorption_capitalised"] is None, "no mean of the other seeds"
    text = to_markdown(document)
    lines = [line for line in text.splitlines() if line.startswith("| blind | 3")]
    assert ["n. e." in line for line in lines] == [False, True], "labels have a table of their own"
    assert "- capitalised: absorption was not evaluable (blind)" in text


def test_seeds_that_agree_on_zero_have_the_interval_of_their_rows(members: list[Member]) -> None:
    """0 in every seed is not 0 for certain: Student's interval would be the point 0."""
    spreads = [(0.0, 0.01), (0.0, 0.04), (0.0, 0.02)]
    zeros = [fake("plain", seed, 0.0, members[0].run, spread) for seed, spread in enumerate(spreads)]
    document = compare_settings(HEADING, zeros, "plain")
    assert setting_of(document, "plain")["figures"]["absorption_capitalised"] == {
        "mean": 0.0, "low": 0.0, "high": 0.04, "n": 3
    }  # fmt: skip
    assert "0% [0%, 4%]" in to_markdown(document)


def test_fewer_than_three_seeds_have_no_interval_of_any_kind(members: list[Member]) -> None:
    for rates in ([0.4], [0.4, 0.5], [0.4, 0.4]):
        two = [fake("plain", seed, rate, members[0].run, (0.1, 0.9)) for seed, rate in enumerate(rates)]
        document = compare_settings(HEADING, two, "plain")
        found = setting_of(document, "plain")["figures"]["absorption_capitalised"]
        assert found == {"mean": pytest.approx(np.mean(rates)), "low": None, "high": None, "n": len(rates)}
        assert "no intervals" in to_markdown(document)


def test_efficiency_says_which_figure_is_missing(members: list[Member]) -> None:
    run = members[0].run
    for before, after, status in (
        ({"fvu": 0.0}, {}, "the baseline's FVU is 0 (seed 0): no relative cost"),
        ({"fvu": None}, {}, "FVU was not measured (seed 0)"),
        ({}, {"l0": None}, "L0 was not measured (seed 0)"),
    ):
        runs = [fake("plain", 0, 0.4, run, **before), fake("pairs", 0, 0.2, run, **after)]
        document = compare_settings(HEADING, runs, "plain")
        assert [one["status"] for one in document["efficiency"]] == [status]


def test_markdown_says_what_to_run_and_what_is_missing(measured: list[Measured], tmp_path: Path) -> None:
    document = compare_settings(HEADING, measured[:8], "plain", ["s-frozen-seed2"])
    text = to_markdown(document)
    assert "$ pipeline sweep s.yaml --only pairs" in text
    assert "layer_01.resid_mid → layer_01.mlp_out, width 512; 64 latents; 30 steps, 300 rows." in text
    assert "Not finished, and not in the tables: s-frozen-seed2." in text
    assert "*frozen*" in text
    assert setting_of(document, "frozen")["figures"]["fvu"]["low"] is None, "two seeds have no interval"
    files = write_comparison(document, tmp_path / "new")
    assert [path.name for path in files] == ["comparison.csv", "comparison.md", "comparison.json"]
    assert json.loads(files[2].read_text()) == document
    assert str(tmp_path) not in files[1].read_text() + files[2].read_text()


def test_the_terminals_table_is_plain_text_and_narrow(
    measured: list[Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    document = compare_settings(HEADING, measured, "plain")
    header, *rows = (line for line in terminal_table(document).splitlines() if not line.startswith("  "))
    assert len({len(line) for line in (header, *rows)}) == 1
    names = ["plain", "pairs", "frozen (control)", "untrained (plain) (control)"]
    assert [row.split("  ")[0] for row in rows] == names
    assert re.split(r"  +", header) == ["setting", "seeds", "FVU", "L0", "dead", "pairs"]
    assert not re.search(r"[*|\\]", "".join((header, *rows)))
    assert len(header) <= 120


def test_nothing_finished(tmp_path: Path) -> None:
    members = [Member("a", 0, tmp_path / "absent")]
    with pytest.raises(DataError, match="no run of s is finished"):
        compare_runs(HEADING, members, AnalyzeConfig(), tmp_path, ("png",), QUIET)


@needs_chromium
def test_nothing_on_the_page_overflows_and_axe_finds_no_fault(
    measured: list[Measured], tmp_path: Path, browser: Any
) -> None:
    document = compare_settings(HEADING, measured, "plain")
    with io.BytesIO() as drawn:
        bars_figure(document, "t").savefig(drawn, format="png")
        write_page(tmp_path / "index.html", sweep_page(document, {"bars": drawn.getvalue()}))
    assert faults_of(browser, tmp_path / "index.html") == {}
