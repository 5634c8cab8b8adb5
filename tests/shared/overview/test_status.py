"""States of caches and runs, and the next command."""

from __future__ import annotations

import json
from pathlib import Path

from sparse_pipeline.shared.overview.status import Status, status
from sparse_pipeline.shared.saved_report import SCHEMA
from tests.sealed import reseal
from tests.shared.projects import make_incomplete_cache, make_run
from tests.synthetic import make_cache


def test_status_of_nothing(tmp_path: Path) -> None:
    found = status(tmp_path / "cache", tmp_path / "runs")
    assert found.to_dict() == {"caches": [], "runs": [], "reports": [], "sweeps": [], "next": "pipeline harvest"}
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
    assert str(status(caches, runs)).count("0.2500") == text.count("0.2500") + 1
    assert "held-out" in str(status(caches, runs))
    assert "held-out" not in text
    assert text.splitlines()[-1] == "next: pipeline analyze"


def test_status_lists_what_was_made_and_advises_what_is_left(tmp_path: Path) -> None:
    caches, runs, reports, sweeps = (tmp_path / name for name in ("cache", "runs", "reports", "sweeps"))
    make_cache(caches / "a")
    for name in ("one", "two", "three"):
        make_run(runs, name)

    def found() -> Status:
        return status(caches, runs, reports_dir=reports, sweeps_dir=sweeps)

    assert found().next == "pipeline analyze"
    facts = {"path": str(runs / "one")}
    entries = [
        {"name": "one", "folder": "one", "trained": True, "facts": facts, "reports": {}},
        {"name": "untrained", "folder": "untrained", "trained": False, "facts": {}, "reports": {}},
    ]
    for name, document in (("first", {"schema": SCHEMA, "schema_version": 1, "runs": entries}), ("broken", {})):
        (reports / name).mkdir(parents=True)
        (reports / name / "report.json").write_text(json.dumps(document))
    assert found().reports == [{"name": "first", "path": str(reports / "first/index.html"), "runs": ["one"]}]
    assert found().next == f"pipeline analyze {runs / 'three'} {runs / 'two'}"
    comparison = {"schema": "sparse-coder-sweep", "settings": [{}], "runs": [{"run": "two"}, {"run": "three"}]}
    (sweeps / "s").mkdir(parents=True)
    (sweeps / "s/comparison.json").write_text(json.dumps({**comparison, "missing": ["four"]}))
    assert found().next == "", "everything is covered"
    lines = str(found()).splitlines()
    assert lines[lines.index("reports") + 1].split()[0] == str(reports / "first/index.html")
    assert "of one" in " ".join(lines[lines.index("reports") + 1 :][:2])
    place = next(place for place, line in enumerate(lines) if line.startswith("sweeps"))
    assert "1 run missing" in lines[place + 1]
    assert "2 runs" in lines[place + 1]
    assert not any(line.startswith("next:") for line in lines)


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
