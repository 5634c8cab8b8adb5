"""Runs shared out to several processes: the same runs as by one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from sparse_pipeline import pipeline
from sparse_pipeline.shared.ranks import local_device


@pytest.fixture
def here(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workshop without its runs, and the current folder."""
    shutil.copytree(workshop, tmp_path / "here", ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def coder(folder: Path, run: str) -> bytes:
    return (folder / "runs" / run / "final/coder.safetensors").read_bytes()


VARIANTS = ["train", "--variant", "topk", "--variant", "matryoshka"]


def test_each_process_trains_its_share(here: Path, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Process 1 of 2 trains the second run alone, process 0 the first; both are those that one process trained."""
    assert pipeline.run([*VARIANTS, "--rank", "1", "--ranks", "2", "--json"]) == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["matryoshka"]
    assert [path.name for path in (here / "runs").iterdir()] == ["matryoshka"]
    assert pipeline.run([*VARIANTS, "--rank", "0", "--ranks", "2"]) == 0
    for run in ("topk", "matryoshka"):
        assert coder(here, run) == coder(workshop, run)
    capsys.readouterr()
    assert pipeline.run([*VARIANTS, "--resume", "--json"]) == 0  # one process sums them up
    assert [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["topk", "matryoshka"]


@pytest.mark.parametrize("ranks", [["--ranks", "3"], ["--rank", "0", "--ranks", "3"]])
def test_more_processes_than_runs_are_refused(here: Path, capsys: pytest.CaptureFixture[str], ranks: list[str]) -> None:
    assert pipeline.run([*VARIANTS, *ranks]) == 2
    assert "3 processes for 2 runs: a run is trained by one process" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_runs_that_all_processes_train_are_planned_with_their_number(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a single process of them needs to know where the others are."""
    bound = ["train", "--variant", "topk", "--set", "train.parallel=data", "--ranks", "3"]
    assert pipeline.run([*bound, "--dry-run"]) == 0
    assert "for each of 3 processes" in capsys.readouterr().out
    assert pipeline.run([*bound, "--rank", "0"]) == 2
    assert "MASTER_ADDR and MASTER_PORT do not say where they meet" in capsys.readouterr().err
    assert pipeline.run(["sweep", "width.yaml", *bound[3:]]) == 2
    assert "train.parallel: a sweep shares out whole runs" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_process_takes_the_gpu_of_its_number() -> None:
    """Without a GPU, and for a device that was chosen, nothing changes."""
    assert local_device("auto", {"LOCAL_RANK": "1"}) == "auto"
    assert local_device("cuda:3", {"LOCAL_RANK": "1"}) == "cuda:3"
    assert local_device("auto", {}) == "auto"


@pytest.mark.slow
def test_the_command_starts_processes_and_sums_up(here: Path, workshop: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "sparse_pipeline"]
    run = subprocess.run([*words, *VARIANTS, "--ranks", "2", "--json"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [one["name"] for one in json.loads(run.stdout)["runs"]] == ["topk", "matryoshka"]
    assert "[0] train: " in run.stderr
    assert "[1] train: " in run.stderr
    for name in ("topk", "matryoshka"):
        assert coder(here, name) == coder(workshop, name)
    sweep = subprocess.run(
        [*words, "sweep", "width.yaml", "--ranks", "2"], env=environment, capture_output=True, text=True
    )
    assert sweep.returncode == 0, sweep.stderr
    assert len(json.loads((here / "sweeps/width/comparison.json").read_text())["settings"]) == 4


@pytest.mark.slow
def test_one_run_by_two_processes_and_one_of_them_killed(here: Path, workshop: Path) -> None:
    """The run of one process, one line of progress; after a death the error names the process that died."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "sparse_pipeline", "train", "--variant", "topk"]
    bound = [*words, "--set", "train.parallel=data", "--ranks", "2"]
    run = subprocess.run([*bound, "--json"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [one["name"] for one in json.loads(run.stdout)["runs"]] == ["topk"]
    assert run.stderr.count("train: topk") == 1
    assert "[1]" not in run.stderr
    found, expected = (load_file(folder / "runs/topk/final/coder.safetensors") for folder in (here, workshop))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)

    longer = [*bound, "--name", "killed", "--set", "train.data.epochs=200", "--set", "train.checkpoint_every=10"]
    killed = subprocess.Popen(longer, env=environment, stderr=subprocess.PIPE, text=True)
    saved = here / "runs/killed/checkpoints"
    while not list(saved.glob("step_*")):
        assert killed.poll() is None
        time.sleep(0.1)
    (second,) = [one for one in psutil.Process(killed.pid).children() if one.cmdline()[-4:-1] == ["1", "--ranks", "2"]]
    second.kill()
    _, said = killed.communicate(timeout=120)
    assert killed.returncode == 1
    assert "error: process 1 of 2 ended by signal 9" in said
    assert "killed at step" in said
