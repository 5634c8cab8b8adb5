"""States of caches and runs, and the next command."""

from __future__ import annotations

from pathlib import Path

from sparse_pipeline.shared.overview.status import status
from tests.sealed import reseal
from tests.shared.projects import make_incomplete_cache, make_run
from tests.synthetic import make_cache


def test_status_of_nothing(tmp_path: Path) -> None:
    found = status(tmp_path / "cache", tmp_path / "runs")
    assert found.to_dict() == {"caches": [], "runs": [], "next": "pipeline harvest"}
    assert str(found) == "no caches and no runs yet\nnext: pipeline harvest"


def test_status_names_what_is_incomplete_and_the_next_command(tmp_path: Path) -> None:
    caches, runs = tmp_path / "cache", tmp_path / "runs"
    make_incomplete_cache(caches / "half")
    (found,) = status(caches, runs).caches
    assert (found["complete"], found["progress"], found["problem"]) == (False, "1 of 4 shards", None)
    assert found["next"] == f"pipeline harvest -c {caches / 'half'}"
    assert status(caches, runs).next == ""

    cache = make_cache(caches / "whole")
    assert status(caches, runs, caches / "whole").next == "pipeline train"
    for trained_on in (caches / "half", caches / "of-the-settings"):
        assert status(caches, runs, trained_on).next == f"pipeline train --set train.cache={caches / 'whole'}"
    whole = status(caches, runs).caches[1]
    assert (whole["name"], whole["complete"], whole["n_tokens"]) == ("whole", True, cache.manifest["n_tokens"])
    assert whole["bytes"] == sum(file.stat().st_size for file in cache.path.rglob("*") if file.is_file())

    make_run(runs, "stopped", finished=False)
    (run,) = status(caches, runs).runs
    assert (run["complete"], run["progress"]) == (False, "at step_00000002")
    assert run["next"] == f"pipeline train -c {runs / 'stopped'} --resume"

    make_run(runs, "done")
    assert status(caches, runs).next == "pipeline analyze"
    text = str(status(caches, runs))
    assert "  FVU 0.2500" in text
    make_run(runs, "heldout", evaluated_on="heldout")
    assert "  held-out FVU 0.2500" in str(status(caches, runs))
    assert text.splitlines()[-1] == "next: pipeline analyze"


def test_status_survives_damage(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache" / "a")
    (cache.path / "manifest.json").write_text("{")
    run = make_run(tmp_path / "runs", "b")
    (run.path / "final/config.json").write_text("{")
    found = status(tmp_path / "cache", tmp_path / "runs")
    assert found.caches[0]["next"] == f"pipeline verify {cache.path}"
    assert found.runs[0]["next"] == f"pipeline verify {run.path}"
    assert str(found).count("damaged: ") == 2


def test_a_result_that_is_no_number_is_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "b")
    reseal(run.path / "final/config.json", lambda document: document["summary"].update(fvu="0.1"))
    found = status(tmp_path / "cache", tmp_path / "runs")
    assert (found.runs[0]["fvu"], found.runs[0]["problem"]) == (None, None)
    assert "complete" in str(found)
