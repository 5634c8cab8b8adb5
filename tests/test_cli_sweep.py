"""`pipeline sweep`: one command from the file to the table; resumed, dry, and with files that make no sense."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline import pipeline
from sparse_pipeline.resolve import resolve_sweep
from tests.test_cli import call

WIDTH = """
sweep:
  name: width
  title: What do more latents buy?
  variants: {topk: topk, nested: {variant: matryoshka, penalties: {ortsae: {weight: 0.1}}}}
  grid: {coder.latents: [64, 128]}
  baseline: topk-latents=64
  plots: [png]
train: {log_every: 10}
analyze: {controls: false, reports: {top_activations: null, position: null}}
"""


@pytest.fixture
def here(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    shutil.copytree(workshop, folder)
    monkeypatch.chdir(folder)
    (folder / "width.yaml").write_text(WIDTH, encoding="utf-8")
    return folder


def test_a_sweep_from_the_file_to_the_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = call(capsys, "sweep", "width.yaml", "--dry-run")
    settings = ["topk-latents=64", "topk-latents=128", "nested-latents=64", "nested-latents=128"]
    assert [run["setting"] for run in plan["runs"]] == settings
    assert plan["parts"] == [[f"width-{setting}" for setting in settings]], "they share one read"
    assert {run["steps"] for run in plan["runs"]} == {
        json.loads((here / "runs/topk/final/config.json").read_text())["summary"]["steps"]
    }
    assert not (here / "runs/width-topk-latents=64").exists()

    part = call(capsys, "sweep", "width.yaml", "--only", "topk-latents=64")
    assert [row["setting"] for row in part["settings"]] == settings[:1]
    assert part["missing"] == [f"width-{setting}" for setting in settings[1:]]

    document = call(capsys, "sweep", "width.yaml")
    assert [row["setting"] for row in document["settings"]] == settings
    assert document["missing"] == []
    for run in document["runs"]:
        summary = json.loads((here / "runs" / run["run"] / "final/config.json").read_text())["summary"]
        assert {key: run[key] for key in ("fvu", "l0")} == {key: summary[key] for key in ("fvu", "l0")}
    # The workshop's own topk has the settings of the second row: trained beside others, the same figures.
    alone = json.loads((here / "runs/topk/final/config.json").read_text())["summary"]
    assert document["runs"][1]["fvu"] == alone["fvu"]
    folder = here / "sweeps/width"
    plots = {"curves", "bars", "training", "frontiers"}
    plots |= {f"curve-{key}" for key in ("loss", "reconstruction", "orthogonality", "active")}
    names = {"index.html", "comparison.csv", "comparison.md", "comparison.json", *(f"{name}.png" for name in plots)}
    assert {path.name for path in folder.iterdir()} == names
    assert all((folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in plots)

    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert pipeline.run(["sweep", "width.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "4 of 4 runs are finished already" in err
    assert "analyze" not in err, "what was measured is not measured again"
    assert out.rstrip().endswith("comparison: sweeps/width/index.html")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        ("sweep: {nmae: x}", [], "sweep.nmae: unknown key; did you mean 'name'?"),
        ("train: {seed: 1}", [], "sweep.name: is required"),
        ("sweep: {name: x, variants: {a: tpok}}", [], "--variant tpok: unknown variant; did you mean 'topk'?"),
        ("sweep: {name: x, variants: {a: 3}}", [], "sweep.variants.a: "),
        ("sweep: {name: x, grid: {coder.k: 3}}", [], "sweep.grid.coder.k: expected"),
        ("sweep: {name: x, grid: {coder.q: [3]}}", [], "q=3: train.coder.q: unknown key"),
        ("sweep: {name: x, base: [demoo]}", [], "-c demoo: no such file and no such preset"),
        ("sweep: {name: x, grid: {coder.k: [3]}}", ["train.coder.k=4"], "--set train.coder.k: sweep.grid varies it"),
        ("sweep: {name: x}\nsweeps: {}", [], "sweeps: unknown key; did you mean 'sweep'?"),
        ("sweep: {name: x}", ["train.data.tokens=256"], "run x-base would take 1 steps"),
    ],
)
def test_files_that_make_no_sense(
    text: str, sets: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "bad.yaml").write_text(text, encoding="utf-8")
    words = [word for one in sets for word in ("--set", one)]
    error: dict[str, Any] = call(capsys, "sweep", "bad.yaml", *words, code=2)["error"]
    assert any(line.startswith(message) for line in error["message"].splitlines())
    assert error["hint"]
    assert not (here / "sweeps").exists()


def test_a_file_that_is_not_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "sweep", "nothing.yaml", code=2)["error"]["message"] == "sweep file not found: nothing.yaml"


def test_settings_override_the_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "over.yaml").write_text(
        "sweep: {size: tiny, seeds: [3, 4], variants: {nested: null}}\ntrain: {coder: {k: 4}}"
    )
    plan = call(capsys, "sweep", "width.yaml", "-c", "over.yaml", "--set", "train.data.epochs=1", "--dry-run")
    names = [f"width-tiny-topk-latents={n}-seed{seed}" for n in (64, 128) for seed in (3, 4)]
    assert [run["name"] for run in plan["runs"]] == names
    assert plan["folder"] == "sweeps/width/tiny"
    whole, cells = resolve_sweep("width.yaml", ["over.yaml"], ["train.data.epochs=1"])
    assert {(cell.config.coder.k, cell.config.data.epochs) for cell in cells} == {(4, 1)}  # type: ignore[attr-defined]
    assert whole.sweep.seeds == (3, 4)


def test_sizes_of_one_sweep(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "sweep: {name: s, size: small, sizes: {large: {sweep: {seeds: [1, 2]}, train: {coder: {latents: 96}}}}}\n"
    (here / "sizes.yaml").write_text(text)
    for size, latents, seeds in ((None, 128, [0]), ("large", 96, [1, 2])):
        whole, cells = resolve_sweep("sizes.yaml", size=size)
        assert whole.sweep.folder == Path("sweeps/s") / (size or "small")
        assert [cell.config.coder.latents for cell in cells] == [latents] * len(seeds)
        assert [cell.seed for cell in cells] == seeds
    error = call(capsys, "sweep", "sizes.yaml", "--size", "huge", code=2)["error"]
    assert (error["message"], error["hint"]) == ("--size huge: not found in sizes.yaml", "sweep.sizes: large")


def test_the_cache_is_harvested_first_where_the_file_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(here / "cache/demo")
    reports = "{top_activations: null, position: null, correlation: null}"
    text = f"sweep: {{name: one, plots: []}}\nanalyze: {{controls: false, reports: {reports}}}"
    (here / "one.yaml").write_text(text)
    assert call(capsys, "sweep", "one.yaml", code=3)["error"]["hint"]
    document = call(capsys, "sweep", "one.yaml", "--set", "sweep.harvest=true", "--set", "train.data.epochs=1")
    assert [run["run"] for run in document["runs"]] == ["one-base"]
    assert (here / "cache/demo/manifest.json").is_file()
