"""The absorption report on a planted cache, through the same pass and the same command as any report."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest

from sparse_pipeline.analyze.config import AnalyzeConfig, default_report
from sparse_pipeline.analyze.reports.absorption.config import AbsorptionConfig
from sparse_pipeline.analyze.reports.probing.report import ProbingConfig
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.runs.folder import create_run
from tests.analyze.hierarchy import Hierarchy, absorbing_coder, hierarchy, true_rates
from tests.analyze.labelled_cache import SITE, TOKEN_LABELS, labelled_cache, report, untrained


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return hierarchy(n=9000, seed=3)


@pytest.fixture(scope="module")
def cache(tree: Hierarchy, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return labelled_cache(tree, tmp_path_factory.mktemp("planted") / "cache")


def test_the_report_finds_the_planted_rate(cache: Cache, tree: Hierarchy) -> None:
    config = AbsorptionConfig(families=TOKEN_LABELS, rows=9000, splits=2)
    result = report("absorption", config, cache, absorbing_coder(tree, 0.25))
    truth = true_rates(tree, 0.25, np.arange(len(tree.x)))
    for p, name in enumerate(TOKEN_LABELS):
        value = result.figure(f"absorption_{name}").value
        assert value == pytest.approx(truth[p], abs=0.03)
    families, labels = result.tables
    assert [row[1] for row in families.rows] == ["evaluable"] * 3
    place = [column.label for column in labels.columns].index("main latents")
    assert {row[0]: row[place] for row in labels.rows} == {name: [p] for p, name in enumerate(TOKEN_LABELS)}
    main_of, absorbs = result.columns
    assert [main_of.values[p] for p in range(3)] == list(TOKEN_LABELS)
    absorbers = np.flatnonzero(np.asarray(absorbs.values))
    assert ((absorbers - 3) % 40 < 10).all()
    json.dumps(result.to_dict(), allow_nan=False)


def test_merging_is_as_good_as_one_pass(cache: Cache, tree: Hierarchy) -> None:
    coder = absorbing_coder(tree, 0.5)
    absorption = AbsorptionConfig(families=("digit",), rows=3000, splits=1)
    probing = ProbingConfig(families=("digit",), rows=3000)
    for kind, config in (("absorption", absorption), ("probing", probing)):
        whole, merged = (report(kind, config, cache, coder, halves).to_dict() for halves in (False, True))
        assert whole == merged


def test_an_untrained_coder_never_scores_zero(cache: Cache, tree: Hierarchy) -> None:
    coder = untrained(tree.x.shape[1])
    families = (*TOKEN_LABELS, "leading_space", "next_token", "position")
    result = report("absorption", AbsorptionConfig(families=families, rows=6000, splits=1), cache, coder)
    for family in result.data["families"]:
        assert family["status"] == "not evaluable"
        assert family["full"] is None
        assert family["reason"]
    assert "digit" in result.lead


def test_every_letter_is_listed(cache: Cache, tree: Hierarchy) -> None:
    """The only words are "Word" and "word": w has no negative row, the others no positive one."""
    config = AbsorptionConfig(families=("digit", "first_letter"), rows=6000, splits=1)
    result = report("absorption", config, cache, absorbing_coder(tree, 0.25))
    letters = {table.key: table for table in result.tables}["absorption_letters"]
    assert [row[0] for row in letters.rows] == list(string.ascii_lowercase)
    positives = {row[0]: row[1] for row in letters.rows}
    assert positives.pop("w") > 3000
    assert set(positives.values()) == {0}
    assert all("fewer than 50" in row[3] for row in letters.rows)
    assert letters.caption.startswith("0 of 26 letters are evaluable")


def test_made_when_named(tree: Hierarchy) -> None:
    assert not {"absorption", "probing"} & set(AnalyzeConfig().reports)
    assert default_report("absorption") == AbsorptionConfig()


def test_the_terminal_says_what_was_asked_for(cache: Cache, tree: Hierarchy, tmp_path: Path) -> None:
    """Reports without a column in the table of headlines say their sentence; an empty before/after is left out."""
    runs = []
    for name, rate in (("few", 0.25), ("many", 0.5)):
        run = create_run(tmp_path / "runs", name, {}, {})
        run.finish(
            absorbing_coder(tree, rate),
            {},
            {"source": SITE, "target": SITE, "cache": {"path": str(cache.path), "identity": cache.identity}},
        )
        runs.append(run.path)
    config = AnalyzeConfig(
        out=tmp_path / "reports",
        controls=False,
        reports={
            "absorption": AbsorptionConfig(families=("digit",), rows=3000, splits=1),
            "probing": ProbingConfig(families=("digit",), rows=3000),
        },
    )
    result = analyze(runs, config)
    document = json.loads((result.report.parent / "report.json").read_text())
    leads = [f"{run['name']}: {report['lead']}" for run in document["runs"] for report in run["reports"].values()]
    lines = str(result).splitlines()
    assert lines[:-1] == leads
    assert lines[0].startswith("few: Full absorption on 3,000 rows: digit ")
    assert lines[1].startswith("few: One probe of k latents per label, 1 labels, 3,000 rows: mean AUC ")
    assert [table["key"] for table in document["comparison"]["tables"]] == ["similarity"]
