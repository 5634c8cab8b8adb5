"""Each bad input gets its error and exit code, and nothing is lost; each command gives the document it promises."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import sparse_pipeline as sp
from sparse_pipeline import pipeline
from sparse_pipeline.resolve import resolve, variants
from tests.faults.subjects import lost
from tests.sealed import flip
from tests.shared.cache.folders import contents


@pytest.fixture
def here(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workshop, and the current folder."""
    folder = tmp_path / "here"
    shutil.copytree(workshop, folder)
    monkeypatch.chdir(folder)
    return folder


def digest(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, excluding temporary names and locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Cli:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> Any:
        """The one JSON document on stdout."""
        self.capsys.readouterr()
        found = pipeline.run([*arguments, "--json"])
        out, err = self.capsys.readouterr()
        assert found == code, f"exit code {found}: {err}"
        return json.loads(out)

    def fails(self, code: int, *arguments: str) -> tuple[str, str]:
        """Message and hint of an error, the same on stderr as in the document."""
        self.capsys.readouterr()
        found = pipeline.run([*arguments, "--json"])
        out, err = self.capsys.readouterr()
        error = json.loads(out)["error"]
        assert (found, error["exit_code"]) == (code, code), err
        for line in error.get("problems", [error["message"]]):
            assert f"error: {line}" in err
        step, _, about = error["hint"].partition("   ")
        assert f"next: {step}\n" in err
        assert about in err
        assert "Traceback" not in err
        return error["message"], error["hint"]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


# --- documents ------------------------------------------------------------------------------------------------------


def test_inspect_cache(cli: Cli, here: Path) -> None:
    document = cli("inspect", "cache/demo")
    assert document["format_version"] == 3
    assert document["complete"] is True
    assert (document["n_tokens"], document["n_sequences"], document["ctx"]) == (12_288, 192, 64)
    sites = {name: (site["shape"], site["logical_dtype"]) for name, site in document["sites"].items()}
    shape = ([12_288, 128], "bfloat16")
    assert sites == {"layer_02.resid_mid": shape, "layer_02.mlp_out": shape}
    group = zarr.open_group(here / "cache/demo/acts.zarr", mode="r")
    assert [group[name].shape for name in sites] == [(12_288, 128)] * 2
    assert document["bytes"] == sum(path.stat().st_size for path in (here / "cache/demo").rglob("*") if path.is_file())
    assert cli("inspect", "demo") == document | {"path": "cache/demo"}


def test_train_and_inspect_run(cli: Cli, here: Path) -> None:
    document = cli("train", "--variant", "topk", "--name", "again")
    (run,) = document["runs"]
    keys = {"name", "path", "variant", "steps", "tokens", "fvu", "fvu_with_bos", "l0", "dead", "seconds"}
    assert keys <= run.keys()
    assert (run["name"], run["path"], run["variant"]) == ("again", "runs/again", "topk")
    assert run["tokens"] == run["steps"] * 256
    assert 0 < run["fvu"] < run["fvu_untrained"]
    first = cli("inspect", "topk")["summary"]
    assert first["fvu"] == run["fvu"], "the same settings give the same result"
    assert digest(here / "runs/again/final").keys() == {"coder.safetensors", "config.json", "record.json"}
    coders = [here / f"runs/{name}/final/coder.safetensors" for name in ("again", "topk")]
    assert coders[0].read_bytes() == coders[1].read_bytes(), (
        "bit-identical whether trained alone or beside another variant"
    )


@pytest.mark.parametrize(
    "target",
    [pytest.param("null", id="sae"), pytest.param("layer_02.mlp_out", id="transcoder", marks=pytest.mark.slow)],
)
def test_every_variant_trains(target: str, cli: Cli, here: Path) -> None:
    """All of them, by name: those that share a sampler on one read of the cache."""
    names = [word for name in variants() for word in ("--variant", name)]
    small = ["train.data.epochs=1", "train.coder.latents=128", "train.source=layer_02.resid_mid"]
    sets = [word for text in (*small, f"train.target={target}") for word in ("--set", text)]
    document = cli("train", "--name", "each", *names, *sets)
    runs = {run["variant"]: run for run in document["runs"]}
    assert runs.keys() == variants().keys()
    for name, run in runs.items():
        assert 0 < run["fvu"] < run["fvu_untrained"], name
        assert run["l0"] > 0, name
        coder = sp.load_coder(here / run["path"])
        assert coder.is_transcoder is (target != "null"), name
        lines = [json.loads(line) for line in (here / run["path"] / "metrics.jsonl").read_text().splitlines()]
        penalties = resolve(variant=name).train.penalties
        logged = set().union(*lines)
        assert all(f"{penalty}/weight" in logged for penalty in penalties), name


@pytest.mark.parametrize("preset", ["demo-layer8", "demo-antidup", "demo-self-contrastive", "demo-topk-pairs"])
def test_every_demo_preset_trains(preset: str, cli: Cli, here: Path) -> None:
    """On the small cache of these tests; in their own size they read the demo's."""
    small = [
        "train.cache=cache/demo",
        "train.data.batch_size=256",
        "train.data.epochs=2",
        "train.optimizer.warmup_steps=10",
    ]
    sets = [word for text in small for word in ("--set", text)]
    (run,) = cli("train", "-c", preset, "--name", preset, *sets, "--set", "train.min_steps=50")["runs"]
    assert 0 < run["fvu"] < run["fvu_untrained"]


def test_analyze(cli: Cli, here: Path) -> None:
    document = cli("analyze", "topk", "runs/matryoshka")
    assert Path(document["report"]).is_file()
    assert [run["name"] for run in document["runs"]] == ["topk", "matryoshka"]
    for run in document["runs"]:
        assert {"name", "n_pairs_above", "n_pairs_above_with_bos", "bos_share_top"} <= run.keys()


def test_analyze_only(cli: Cli, here: Path) -> None:
    document = cli("analyze", "topk", "--only", "correlation")
    (run,) = document["runs"]
    assert "n_pairs_above" in run
    assert "bos_share_top" not in run


def test_demo_and_again(cli: Cli, here: Path) -> None:
    document = cli("demo", "-c", "pipeline.yaml")
    assert document["harvest"]["shards_written"] == 0, "the existing cache is used"
    assert Path(document["report"]).is_file()
    matryoshka, _, frozen = document["runs"]
    assert matryoshka["fvu"] < frozen["fvu"]
    assert matryoshka["fvu"] < matryoshka["fvu_untrained"]
    before = digest(here / "runs")
    again = cli("demo", "-c", "pipeline.yaml")
    assert again["runs"] == document["runs"]
    assert again["analysis"] == {**document["analysis"], "seconds": 0.0}
    assert digest(here / "runs") == before
    written = digest(here / "reports")

    assert pipeline.run(["demo", "-c", "pipeline.yaml"]) == 0
    out, err = cli.capsys.readouterr()
    assert digest(here / "reports") == written, "the report is reused too"
    assert "3/3 analyze: reports/demo/index.html was made by an earlier demo, reused" in err
    assert err.count("finished by an earlier demo, reused") == 3
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    assert ["coder", "held-out FVU", "L0"] in rows
    for name, fvu in {"matryoshka": matryoshka["fvu"], "matryoshka, untrained": matryoshka["fvu_untrained"]}.items():
        assert f"{fvu:.4f}" in next(row for row in rows if row[0] == name)
    assert max(map(len, out.splitlines())) <= 80
    assert out.endswith(f"report: {document['report']}\n")

    labels_show_in_a_demo_that_is_run_again(cli, here)


def labels_show_in_a_demo_that_is_run_again(cli: Cli, here: Path) -> None:
    told = cli("explain", "demo-topk", "--set", "explain.count=4", "--set", "explain.controls=0")
    cli("demo", "-c", "pipeline.yaml")
    facts = {run["name"]: run["facts"] for run in json.loads((here / "reports/demo/report.json").read_text())["runs"]}
    assert facts["demo-topk"]["explanations"]["judge"] == "rule"
    assert facts["demo-matryoshka"]["explanations"] is None
    assert told["latents"][0]["label"] in sp.open_report(here / "reports/demo").latents("demo-topk")["label"].tolist()
    written = digest(here / "reports/demo")
    cli("demo", "-c", "pipeline.yaml")
    assert digest(here / "reports/demo") == written


def test_train_demo_and_analyze_headline_one_fvu(cli: Cli, here: Path) -> None:
    (summary,) = cli("analyze", "topk", "--only", "global")["runs"]
    trained = cli("inspect", "topk")["summary"]
    assert summary["heldout_fvu"] == trained["fvu"]
    (again,) = cli("analyze", "topk", "--only", "global", "--set", "analyze.documents=heldout",
                   "--set", "analyze.name=held")["runs"]  # fmt: skip
    assert again["fvu"] == pytest.approx(trained["fvu"], rel=1e-6), "measured anew on the same rows"
    assert abs(summary["fvu"] - trained["fvu"]) > 1e-6, "all documents are other rows"


def test_status(cli: Cli, here: Path) -> None:
    document = cli("status")
    assert [(cache["name"], cache["complete"]) for cache in document["caches"]] == [("demo", True)]
    assert {(run["name"], run["complete"]) for run in document["runs"]} == {("topk", True), ("matryoshka", True)}
    assert document["next"] == "pipeline analyze"


@pytest.mark.parametrize("path", ["runs/topk", "topk", "demo"])
def test_verify(path: str, cli: Cli, here: Path) -> None:
    document = cli("verify", path)
    assert (document["ok"], document["complete"], document["problems"]) == (True, True, [])


def test_dry_runs_write_nothing(cli: Cli, here: Path) -> None:
    before = digest(here)
    plan = cli("harvest", "--dry-run", "--set", "harvest.name=other")
    assert not (here / "cache/other").exists()
    assert json.dumps(plan)
    plan = cli("train", "--dry-run", "--variant", "topk", "--name", "other")
    assert plan["groups"][0]["steps"] == cli("inspect", "topk")["summary"]["steps"]
    assert digest(here) == before


def test_config_documents(cli: Cli, here: Path) -> None:
    document = cli("config", "show", "--variant", "topk", "--set", "train.coder.k=3")
    assert document["train"]["coder"]["architecture"] == "topk"
    assert document["train"]["coder"]["k"] == 3
    assert document["harvest"]["name"] == "demo", "./pipeline.yaml was read"
    assert cli("config", "schema")["properties"].keys() == {"harvest", "train", "analyze", "explain", "tune"}
    assert cli("config", "validate")["valid"] is True


def test_settings_of_a_cache_and_of_a_run(cli: Cli, here: Path) -> None:
    """What `status` says to run next resumes exactly that cache or run."""
    before = digest(here / "cache/demo"), digest(here / "runs/topk")
    (here / "pipeline.yaml").unlink()
    assert cli("harvest", "-c", "cache/demo")["shards_written"] == 0
    assert cli("train", "-c", "runs/topk", "--resume")["runs"][0]["name"] == "topk"
    assert (digest(here / "cache/demo"), digest(here / "runs/topk")) == before


def test_a_cache_by_its_name(cli: Cli, here: Path) -> None:
    """What was harvested under another name than the settings': status says how to train on it, and a name will do."""
    shutil.rmtree(here / "runs")
    (here / "demo").mkdir()  # a folder of that name which is no cache
    other = ("--set", "harvest.name=other")
    assert cli("status", *other)["next"] == "pipeline train --set train.cache=cache/demo"
    message, hint = cli.fails(3, "train", *other)
    assert message == "no cache at cache/other"
    assert hint.startswith("caches in cache: demo (train.cache")
    message, _ = cli.fails(3, "train", "--set", "train.cache=dmo")
    assert message == "no cache at cache/dmo; did you mean 'demo'?"
    named = (*other, "--set", "train.cache=demo", "--name", "x", "--variant", "topk")
    assert cli("train", "--dry-run", *named)["groups"][0]["cache"] == "cache/demo"
    assert cli("inspect", "demo")["path"] == "cache/demo"
    cli("train", *named)
    (run,) = cli("analyze", "x", "--only", "position", "--set", "analyze.cache=demo")["runs"]
    assert run["name"] == "x"


def test_prompts_name_the_command_that_harvests_them(cli: Cli, here: Path) -> None:
    """Of a cache of a text with columns and shards of its own: its model at its sites, on the prompts."""
    text = "".join(json.dumps({"body": f"text number {n}", "kind": "a"}) + "\n" for n in range(200))
    (here / "own.jsonl").write_text(text)
    columns = ["text_column=body", "domain_column=kind", "label_columns=[kind]", "dataset=own.jsonl", "tokens=256"]
    sets = [
        word for one in (*columns, "name=own", "sites=[layer_01.resid_mid]") for word in ("--set", f"harvest.{one}")
    ]
    cli("harvest", *sets)
    step = cli("prompts", "first-letter", "cache/own", "letters.jsonl", "--words", "12")["next"]
    assert step.startswith("pipeline harvest -c cache/own --set harvest.dataset=letters.jsonl ")
    (here / "pipeline.yaml").unlink()
    result = cli(*shlex.split(step)[1:])
    assert (result["path"], result["n_sequences"]) == ("cache/letters", 12)
    assert cli("inspect", "letters")["sites"].keys() == {"layer_01.resid_mid"}


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["harvest", "train", "analyze", "demo", "status"])
def test_unknown_key(command: str, cli: Cli, here: Path) -> None:
    before = digest(here)
    message, hint = cli.fails(2, command, "--set", "train.coder.kk=3", "--set", "harvest.modle=x")
    assert message.splitlines() == [
        "harvest.modle: unknown key; did you mean 'model'?",
        "train.coder.kk: unknown key; did you mean 'k'?",
    ]
    assert hint.startswith("pipeline config show   (explains every setting; settings came from ")
    assert digest(here) == before


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["train.coder.k=many"], 'train.coder.k: expected a valid integer, found "many" (text)'),
        (["harvest.sites={a: 1}"], "harvest.sites: expected a valid array"),
        (["train.coder.architecture=topkk"], "train.coder: unknown architecture 'topkk'; did you mean 'topk'?"),
        (["train.coder.k=129"], "train.coder: k must be between 1 and latents = 128, not 129"),
        (["train.coder.groups=[64, 32]"], "train.coder: groups [64, 32] sum to 96, but latents is 128"),
        (["train.coder.k"], "--set 'train.coder.k': expected KEY.KEY=VALUE"),
    ],
)
def test_bad_settings(sets: list[str], message: str, cli: Cli, here: Path) -> None:
    found, _ = cli.fails(2, "train", *(word for text in sets for word in ("--set", text)))
    assert found.startswith(message)


def test_bad_settings_files(cli: Cli, here: Path) -> None:
    assert "no such file and no such preset" in cli.fails(2, "train", "-c", "gemma-3")[0]
    (here / "bad.yaml").write_text("train:\n  seed: 1\n  seed: 2\n")
    assert "bad.yaml, line 3, column 3: duplicate key 'seed'" in cli.fails(2, "train", "-c", "bad.yaml")[0]


def test_unknown_variant_report_and_run(cli: Cli, here: Path) -> None:
    message, hint = cli.fails(2, "train", "--variant", "matroyshka")
    assert message == "--variant matroyshka: unknown variant; did you mean 'matryoshka'?"
    assert "topk" in hint
    assert cli.fails(2, "train", "--variant", "./mine.yaml")[1] == "-c ./mine.yaml"
    message, hint = cli.fails(2, "analyze", "topk", "--only", "corelation")
    assert message == "--only corelation: no such report; did you mean 'correlation'?"
    assert "no run 'tpok' in runs; did you mean 'topk'?" in cli.fails(3, "analyze", "tpok")[0]


def test_missing_cache(cli: Cli, here: Path) -> None:
    before = digest(here)
    message, hint = cli.fails(3, "train", "--set", "train.cache=cache/nothing", "--name", "x")
    assert "no cache at cache/nothing" in message
    assert "pipeline harvest" in hint
    assert cli.fails(3, "inspect", "nothing")[1] == "pipeline status"
    assert cli.fails(3, "verify", "nothing")[1] == "pipeline status"
    assert digest(here) == before


def test_missing_runs(cli: Cli, here: Path) -> None:
    shutil.rmtree(here / "runs")
    assert cli.fails(3, "analyze") == ("no finished run in runs", "pipeline train")


def test_a_taken_name_is_not_overwritten(cli: Cli, here: Path) -> None:
    before = digest(here)
    message, hint = cli.fails(2, "train", "--variant", "topk")
    assert "run topk already exists" in message
    assert "--resume" in hint
    assert digest(here) == before


def test_incomplete_cache(cli: Cli, here: Path) -> None:
    whole = digest(here / "cache/demo")
    (here / "cache/demo/manifest.json").unlink()
    (here / "cache/demo/commits/000003.json").unlink()
    message, hint = cli.fails(3, "train", "--name", "x")
    assert "is incomplete: 5 of 6 shards are committed" in message
    assert "harvest" in hint
    assert cli("inspect", "cache/demo")["complete"] is False
    (entry,) = cli("status")["caches"]
    assert (entry["complete"], entry["next"]) == (False, "pipeline harvest -c cache/demo")
    assert cli("harvest")["shards_written"] == 1
    assert digest(here / "cache/demo") == whole


def chunk(here: Path) -> Path:
    return here / "cache/demo/acts.zarr/layer_02.mlp_out/c.2.0"


def test_one_flipped_byte(cli: Cli, here: Path) -> None:
    data = np.fromfile(chunk(here), np.uint8)
    data[1000] ^= 1
    data.tofile(chunk(here))
    document = cli("verify", "cache/demo", code=3)
    assert document["ok"] is False
    assert [problem["path"] for problem in document["problems"]] == [str(chunk(here).relative_to(here))]


def test_truncated_chunk(cli: Cli, here: Path) -> None:
    os.truncate(chunk(here), 1000)
    for command in (("train", "--name", "x"), ("analyze", "topk")):
        message, hint = cli.fails(3, *command)
        assert str(chunk(here).relative_to(here)) in message
        assert hint
    assert cli("verify", "cache/demo", code=3)["ok"] is False


def test_cache_of_another_config(cli: Cli, here: Path) -> None:
    before = digest(here)
    message, hint = cli.fails(3, "harvest", "--set", "harvest.separator=none", "--set", "harvest.dataset=corpus.jsonl")
    assert "cache/demo was made with a different config" in message
    assert 'harvest.separator: the cache has "eos", this config has "none"' in message
    assert 'harvest.dataset: the cache has "demo", this config has "corpus.jsonl"' in message
    assert hint
    assert digest(here) == before


def test_empty_dataset(cli: Cli, here: Path) -> None:
    (here / "empty.jsonl").write_text("")
    message, hint = cli.fails(2, "harvest", "--set", "harvest.dataset=empty.jsonl", "--set", "harvest.name=e")
    assert "empty.jsonl" in message
    assert hint


@pytest.mark.parametrize(
    ("setting", "command"),
    [
        ("harvest.cache_dir", ("harvest", "--set", "harvest.name=x")),
        ("train.runs", ("train", "--variant", "topk", "--set", "train.cache=cache/demo")),
        ("analyze.out", ("analyze", "runs/topk", "--only", "position")),
    ],
)
def test_a_folder_that_cannot_be_made(setting: str, command: tuple[str, ...], cli: Cli, here: Path) -> None:
    (here / "file").write_text("")
    message, hint = cli.fails(2, *command, "--set", f"{setting}=file/below")
    assert message.startswith(f"{setting}: cannot create file/below")
    assert message.endswith(": Not a directory")
    assert hint.endswith(f" --set {setting}=FOLDER")


@pytest.mark.slow
def test_full_disk_and_then_space(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(here / "cache/demo/acts.zarr"), digest(here / "cache/demo/commits")
    shutil.rmtree(here / "cache/demo")
    write, written = os.write, 0

    def limited(descriptor: int, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 2_500_000:  # of about 6.4 MB
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", limited)
        message, hint = cli.fails(1, "harvest")
    assert "full" in message
    assert hint
    committed = sorted((here / "cache/demo/commits").glob("*.json"))
    assert 0 < len(committed) < 6
    kept = {path: path.stat().st_mtime_ns for path in committed}
    assert cli("harvest")["shards_written"] == 6 - len(committed)
    assert {path: path.stat().st_mtime_ns for path in committed} == kept
    assert (digest(here / "cache/demo/acts.zarr"), digest(here / "cache/demo/commits")) == before


def test_too_short_a_run_is_refused_with_its_arithmetic(cli: Cli, here: Path) -> None:
    message, _ = cli.fails(2, "train", "--name", "x", "--set", "train.min_steps=1000")
    assert "fewer than train.min_steps = 1000" in message
    assert not (here / "runs/x").exists()


def follow(command: str, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Runs a command, then each `next:` that it prints, until there is none; what was run."""
    done = []
    while command:
        assert command not in done, f"a circle: {done}"
        done.append(command)
        assert len(done) < 6, done
        pipeline.run(shlex.split(command)[1:])
        shown = [line for line in capfd.readouterr().err.splitlines() if line.startswith("next: ")]
        command = (
            shown[-1].removeprefix("next: ").partition("   (")[0].removesuffix(" writes what is missing")
            if shown
            else ""
        )
    return done


def test_every_hint_after_damage_leads_to_the_bytes_of_before(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The commands are those that were printed, as printed."""
    cache, run = contents(here / "cache/demo"), contents(here / "runs/topk")
    flip(here / "cache/demo/acts.zarr/layer_02.mlp_out/c.1.0", 99)
    flip(here / "cache/demo/manifest.json", 60)
    flip(here / "cache/demo/tokenizer/tokenizer.json", 600)
    flip(here / "runs/topk/final/coder.safetensors", -9)
    _, repaired, harvested = follow("pipeline inspect cache/demo", capfd)
    assert repaired == "pipeline verify cache/demo --repair"
    assert harvested == "pipeline harvest -c cache/demo"
    _, repaired, resumed = follow("pipeline analyze topk", capfd)
    assert repaired == "pipeline verify runs/topk --repair"
    assert resumed == "pipeline train -c runs/topk --resume"
    assert contents(here / "cache/demo") == cache
    assert lost(here / "runs/topk", run) == []


@pytest.mark.parametrize("command", [["analyze"], ["explain", "topk"]], ids=lambda words: words[0])
def test_no_latent_is_not_all_of_them(command: list[str], cli: Cli) -> None:
    found = cli.fails(2, *command, "--latents", " ")
    assert found == ("--latents names no latent", f"pipeline {command[0]} --latents 3,14")
