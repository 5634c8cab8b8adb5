"""The commands on a real cache and real runs: what goes out comes back with the same figures in every report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sparse_pipeline as sp
from sparse_pipeline import pipeline
from sparse_pipeline.shared.runs.folder import open_run


@pytest.fixture
def here(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    shutil.copytree(workshop, folder)
    monkeypatch.chdir(folder)
    return folder


class Cli:
    """One JSON document per command line."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> Any:
        self.capsys.readouterr()
        found = pipeline.run([*arguments, "--json"])
        out, err = self.capsys.readouterr()
        assert found == code, err
        return json.loads(out)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_out_and_back_every_report_says_the_same(here: Path, cli: Cli) -> None:
    found = cli("export", "topk", "out/sparsify", "--to", "sparsify", "--rows", "300")
    (coder,) = found["coders"]
    assert found["exact"]
    assert (coder["measured"]["rows"], coder["measured"]["rows_with_other_latents"]) == (300, 0)
    assert coder["measured"]["max_code_difference"] < 1e-4
    document = json.loads((here / "out/sparsify/export.json").read_text())
    assert document["coders"][0]["measured"] == coder["measured"]
    assert (coder["model"], coder["source"]) == ("demo", open_run("runs/topk").final["source"])

    (made,) = cli("import", "out/sparsify", "--name", "back", "--cache", "demo")["runs"]
    assert made["notes"] == []
    report = cli(
        "analyze", "topk", "back", "--only", "global", "--only", "cross_entropy",
        "--set", "analyze.reports.cross_entropy.sequences=4", "--set", "analyze.documents=heldout",
    )  # fmt: skip
    ours, theirs = report["runs"]
    assert (ours["name"], theirs["name"]) == ("topk", "back")
    for figure in ("fvu", "l0", "fvu_with_bos", "ce_recovered", "kl"):
        assert theirs[figure] == pytest.approx(ours[figure], rel=1e-4), figure
    assert cli("verify", "back")["ok"]
    assert cli("inspect", "back")["summary"] == {}
    entries = {entry["name"]: entry for entry in cli("status")["runs"]}
    assert (entries["back"]["complete"], entries["back"]["fvu"]) == (True, None)
    assert "like-it" in json.dumps(cli("train", "-c", "runs/back", "--dry-run", "--name", "like-it"))

    error = cli("analyze", "back", "--set", "analyze.documents=heldout", code=2)["error"]
    assert "imported" in error["message"]
    assert cli("import", "out/sparsify", "--name", "back", code=2)["error"]["hint"].endswith("--name OTHER")


def test_matryoshka_as_a_threshold_and_its_control(here: Path, cli: Cli) -> None:
    found = cli("export", "runs/matryoshka", "out/sae", "--to", "saelens")
    assert not found["exact"]
    cli("import", "out/sae", "--name", "sae")
    coder = sp.load_coder("out/sae")
    assert coder.config == sp.load_coder("runs/sae").config
    error = cli("analyze", "sae", "--only", "global", code=3)["error"]
    assert "--set analyze.cache=PATH" in error["hint"]
    report = cli("analyze", "sae", "--only", "global", "--set", "analyze.cache=demo")
    # the report counts the rows of all documents, the export those of held-out ones
    assert report["runs"][0]["fvu"] == pytest.approx(found["coders"][0]["measured"]["fvu_export"], abs=0.15)
    assert report["controls"][0]["fvu"] > report["runs"][0]["fvu"]


def test_a_run_whose_cache_is_gone_is_exported_unmeasured(here: Path, cli: Cli) -> None:
    shutil.rmtree("cache/demo")
    found = cli("export", "topk", "out/plain", "--to", "safetensors", "--model", "google/gemma-2-2b")
    assert found["coders"][0]["measured"] is None
    assert "was not found" in found["coders"][0]["measured_text"]
    assert json.loads(Path("out/plain/coder.json").read_text())["model"] == "google/gemma-2-2b"
