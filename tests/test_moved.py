"""Runs and caches that were moved or renamed; `--resume` with nothing to resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sparse_pipeline import pipeline


def test_a_run_that_was_renamed_and_its_cache_are_found(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "elsewhere"
    shutil.copytree(workshop, home)
    monkeypatch.chdir(home)
    (home / "runs" / "topk").rename(home / "runs" / "renamed")
    (home / "cache" / "demo").rename(home / "cache" / "other-name")
    (home / "runs" / "matryoshka").rename(home / "unrelated")
    shutil.rmtree(home / "runs" / "renamed" / "final")  # not finished: it continues from its last checkpoint
    capsys.readouterr()
    assert pipeline.run(["train", "-c", "runs/renamed", "--resume", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert Path(run["path"]).resolve() == home / "runs" / "renamed"
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["renamed"]
    assert (home / "runs" / "renamed" / "final" / "config.json").is_file()
    expected, found = (
        folder / "final" / "coder.safetensors" for folder in (workshop / "runs/topk", home / "runs/renamed")
    )
    assert found.read_bytes() == expected.read_bytes()
    assert pipeline.run(["train", "-c", "unrelated", "--resume", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert Path(run["path"]).resolve() == home / "unrelated"


@pytest.mark.parametrize("arguments", [["--variant", "batchtopk"], ["--name", "unknown"]])
def test_nothing_to_resume_is_an_error(
    workshop: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    assert pipeline.run(["train", *arguments, "--resume"]) == 3
    error = capsys.readouterr().err
    assert f"--resume: there is no run {arguments[1]} in runs; the runs there: matryoshka, topk" in error
    assert not (workshop / "runs" / arguments[1]).exists()
