"""Runs by setting and their figures over seeds: intervals against scipy, aims and changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from sparse_pipeline.analyze.compare.seeds import (
    baseline_first,
    before_after,
    figures_over_seeds,
    group_runs,
    settings_key,
)
from sparse_pipeline.analyze.probes.intervals import Estimate, difference
from sparse_pipeline.analyze.result import Aim, Figure, ReportResult
from sparse_pipeline.analyze.subject.analysed import Analysed
from sparse_pipeline.analyze.subject.subject import Subject


def facts_of(name: str, setting: int) -> dict[str, Any]:
    """Of runs that differ in one setting and the seed."""
    return {"cache": "c", "trained_on": "i", "source": "a", "target": "b", "settings": {"x": setting, "seed": name}}


def run_of(name: str, setting: int, *figures: Figure) -> Analysed:
    """As much of a run as the table of figures looks at."""
    subject = cast(Subject, SimpleNamespace(name=name, role="run"))
    return Analysed(subject, facts_of(name, setting), {"toy": ReportResult("toy", "", "", figures)})


def figures(fvu: float, share: float) -> tuple[Figure, Figure]:
    return (
        Figure("share", "share", share, "", "percent", aim=Aim(0.2, "≤ 20%"), before_after=True),
        Figure("fvu", "FVU", fvu, "", before_after=True),
    )


def test_a_change_has_welchs_interval_over_seeds() -> None:
    before, after = [0.30, 0.31, 0.33, 0.29], [0.25, 0.27, 0.20]
    runs = [run_of(f"topk-{n}", 0, *figures(fvu, 0.9)) for n, fvu in enumerate(before)]
    runs += [run_of(f"ortho-{n}", 1, *figures(fvu, 0.1)) for n, fvu in enumerate(after)]
    runs.append(run_of("single", 2, *figures(0.4, 0.3)))
    groups = group_runs(runs)
    found = figures_over_seeds(groups)["fvu"]
    want = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    change = found["ortho"]["change"]
    assert change["value"] == pytest.approx(np.mean(after) - np.mean(before))
    assert (change["low"], change["high"]) == (pytest.approx(want.low), pytest.approx(want.high))
    assert "change" not in found["topk"]
    assert found["single"]["change"] == {"value": pytest.approx(0.4 - np.mean(before)), "low": None, "high": None}
    table = before_after(groups)
    assert [column.label for column in table.columns] == ["figure", "aim", "topk", "ortho", "single"]
    share, fvu = table.rows
    assert share[:2] == ["share", "≤ 20%"]
    assert [cell.count("✓") for cell in share[2:]] == [0, 1, 0]
    low, high = (100 * end / np.mean(before) for end in want)
    assert f"({100 * change['value'] / np.mean(before):+.0f}% [{low:+.0f}, {high:+.0f}])" in fvu[3]
    assert fvu[4] == "0.4 (+30%)"
    turned = baseline_first(groups, "ortho-2")
    assert list(turned) == ["ortho", "topk", "single"]
    assert figures_over_seeds(turned)["fvu"]["topk"]["change"]["value"] == pytest.approx(-change["value"])
    assert difference([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]) == Estimate(0.0, 0.0, 0.0)


def test_settings_are_the_same_but_for_the_seed() -> None:
    facts = {"cache": "c", "trained_on": "i", "source": "a", "target": "b"}
    one = {"seed": 0, "name": "x", "coder": {"k": 4}, "data": {"seed": 1, "batch_size": 8}}
    assert settings_key(facts, one) == settings_key(
        facts, {**one, "seed": 3, "name": "y", "data": {"seed": 2, "batch_size": 8}}
    )
    assert settings_key(facts, one) != settings_key(facts, {**one, "coder": {"k": 5}})
    assert settings_key(facts, one) != settings_key({**facts, "cache": "d"}, one)
    assert settings_key(facts, one) != settings_key({**facts, "trained_on": "j"}, one)


def test_a_twin_has_a_row_of_its_own_and_no_aim() -> None:
    aim = Aim(3, "≤ 3")
    pairs = [Figure("pairs", "pairs", n, "", "integer", with_bos=9, aim=aim, before_after=True) for n in (4, 2)]
    hidden = Figure("hidden", "hidden", 1, "")
    groups = group_runs([run_of("a", 0, pairs[0], hidden), run_of("b", 1, pairs[1])])
    found = figures_over_seeds(groups)
    assert list(found) == ["pairs", "pairs_with_bos"], "a figure is a row where it says so"
    assert [found["pairs"][name]["met"] for name in "ab"] == [False, True]
    assert "met" not in found["pairs_with_bos"]["b"]
    assert [row[:3] for row in before_after(groups).rows] == [
        ["pairs", "≤ 3", "4"],
        ["… including position 0", "", "9"],
    ]


def test_names_of_groups() -> None:
    names = [("topk-0", 1), ("ortho", 2), ("topk-1", 1), ("topk_seed7", 3), ("topk_seed8", 3)]
    found = group_runs([run_of(*entry) for entry in names])
    assert list(found) == ["topk", "ortho", "topk′"]
