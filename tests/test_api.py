"""The Python API resolves names and settings as the commands do, and reads reports as data frames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import sparse_pipeline as sp
from sparse_pipeline import pipeline
from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.resolve import resolve, train_configs
from sparse_pipeline.shared.errors import ConfigError, DataError, UsageError


@pytest.fixture(scope="module")
def here(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workshop, and a report that compares its two runs."""
    folder = tmp_path_factory.mktemp("api") / "w"
    shutil.copytree(workshop, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sp.run_analyze(["topk", "runs/matryoshka"], only=["top_activations", "position"], name="both", max_tokens=4096)
    return folder


@pytest.fixture(autouse=True)
def _there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def test_names_are_found_where_the_settings_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sp.open_cache("demo").path == Path("cache/demo")
    assert sp.open_cache("cache/demo").identity == sp.open_cache(Path("demo")).identity
    coder = sp.load_coder("topk")
    assert (coder.source, coder.target) == ("layer_02.resid_mid", "layer_02.mlp_out")
    (tmp_path / "pipeline.yaml").write_text(
        f"harvest: {{cache_dir: {Path.cwd() / 'cache'}}}\ntrain: {{runs: {Path.cwd() / 'runs'}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert sp.open_cache("demo").n_rows == 12_288
    assert sp.load_coder("topk").n_latents == 128
    with pytest.raises(DataError, match="no cache at .*/cache/demmo; did you mean 'demo'"):
        sp.open_cache("demmo")
    with pytest.raises(DataError, match="runs/tipk was not found"):
        sp.load_coder("tipk")


def test_keywords_train_what_the_command_trains(here: Path) -> None:
    (run,) = sp.run_train(cache="demo", variant="topk", name="by-keyword", coder={"k": 8}, log_every=30)
    assert run.path == "runs/by-keyword"
    ours, theirs = (here / f"runs/{name}/final/coder.safetensors" for name in ("by-keyword", "topk"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_several_variants_and_several_configs() -> None:
    named = train_configs((), (), ["topk", "relu"], "ab", changes={"cache": "demo", "coder": {"latents": 64}})
    assert [(one.run_name, one.coder.latents, one.cache) for one in named] == [
        ("ab-topk", 64, Path("cache/demo")),
        ("ab-relu", 64, Path("cache/demo")),
    ]
    with pytest.raises(UsageError, match="run topk already exists"):
        sp.run_train([{"name": "topk"}, {"name": "x"}], cache="demo")


def messages(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert pipeline.run([*arguments, "--json"]) == 2
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["error"]
    return list(found.get("problems", [found["message"]]))


@pytest.mark.parametrize(
    ("call", "command"),
    [
        (lambda: sp.run_train(coder={"kk": 3}, seed="x"), "train --set train.coder.kk=3 --set train.seed=x"),
        (lambda: sp.run_train({"sead": 3}), "train --set train.sead=3"),
        (lambda: sp.run_train(variant="topkk"), "train --variant topkk"),
        (lambda: sp.run_train(variant=["topk", "topk"]), "train --variant topk --variant topk"),
        (lambda: sp.run_train(data={"batch_size": 0}), "train --set train.data.batch_size=0"),
        (lambda: sp.run_harvest(ctx=1), "harvest --set harvest.ctx=1"),
        (lambda: sp.run_harvest("no-preset"), "harvest -c no-preset"),
        (lambda: sp.run_harvest(tokens=[1]), "harvest --set harvest.tokens=[1]"),
        (lambda: sp.run_analyze("topk", max_tokens=0), "analyze topk --set analyze.max_tokens=0"),
        (lambda: sp.run_analyze("topk", only="posision"), "analyze topk --only posision"),
    ],
)
def test_the_messages_are_those_of_the_command(call: Any, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as raised:
        call()
    problems = raised.value.problems if isinstance(raised.value, ConfigError) else [raised.value.message]
    assert problems == messages(*command.split(), capsys=capsys)


def test_settings_come_from_files_mappings_configs_and_keywords() -> None:
    whole = resolve(changes={"harvest": {"tokens": 99}})
    assert (whole.harvest.tokens, whole.harvest.ctx) == (99, 64), "over ./pipeline.yaml"
    with pytest.raises(DataError, match="harvest.tokens: the cache has 12288, this config has 4096"):
        sp.run_harvest({"tokens": 4096})  # the cache `demo` of ./pipeline.yaml has 12,288
    with pytest.raises(DataError, match="harvest.ctx: the cache has 64, this config has 128"):
        sp.run_harvest(HarvestConfig(name="demo"), tokens=4096)
    report = sp.run_analyze("topk", AnalyzeConfig(name="small"), only="position", max_tokens=2048)
    assert report.report == Path("reports/small/index.html")
    assert report.rows == 2048


def test_a_report_as_frames() -> None:
    report = sp.open_report("both")
    assert report.runs[:2] == ["topk", "matryoshka"]
    written = json.loads(Path("reports/both/report.json").read_text())
    figures = report.figures.set_index(["run", "report", "key"])
    for run in written["runs"]:
        for name, result in run["reports"].items():
            for key, figure in result["figures"].items():
                row = figures.loc[(run["name"], name, key)]
                for column in ("value", "with_bos", "null"):
                    expected = figure[column]
                    assert pd.isna(row[column]) if expected is None else row[column] == expected
                assert row["definition"] == figure["definition"]
    latents = report.latents("matryoshka")
    stored = pq.read_table("reports/both/matryoshka/latents.parquet").to_pydict()
    assert latents["density"].tolist() == stored["density"]
    assert latents.index.tolist() == stored["latent"]
    table = report.tables["latents"]
    assert set(table["run"]) >= {"topk", "matryoshka"}
    for name, frame in report.tables.items():
        assert len(frame.columns) > 1, name
        assert frame.columns.is_unique, name
    listed = {f"{report}.{table['key']}" for report, result in written["runs"][0]["reports"].items()
              for table in result["tables"]}  # fmt: skip
    assert listed <= set(report.tables)
    assert "comparison.before_after" in report.tables
    key = next(iter(listed))
    (first,) = [t for r, result in written["runs"][0]["reports"].items() for t in result["tables"]
                if f"{r}.{t['key']}" == key]  # fmt: skip
    rows = report.tables[key]
    assert (
        rows[rows["run"] == "topk"]
        .iloc[:, 1:]
        .astype(object)
        .where(rows.notna(), None)
        .to_numpy()
        .tolist()[: len(first["rows"])]
        == first["rows"]
    )


def test_a_report_that_is_missing() -> None:
    with pytest.raises(DataError, match="no report at reports/bth"):
        sp.open_report("bth")
    with pytest.raises(DataError, match="no table 'letents'"):
        sp.open_report("reports/both/index.html").tables["letents"]
    with pytest.raises(UsageError, match="no run 'x'"):
        sp.open_report("both").latents("x")
    Path("reports/other").mkdir(exist_ok=True)
    Path("reports/other/report.json").write_text("{}")
    with pytest.raises(DataError, match="is not a report of"):
        sp.open_report("other")
