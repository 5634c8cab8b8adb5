"""`pipeline tune`: what moves, what it leaves, how it resumes, what other commands make of it, and bad inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparse_pipeline as sp
from sparse_pipeline import pipeline
from sparse_pipeline.analyze.result import show
from sparse_pipeline.models.folder import DEMO_MODEL
from sparse_pipeline.shared.cache.heldout import split_rows
from sparse_pipeline.shared.coders import ARCHITECTURES, build_coder
from sparse_pipeline.shared.config.settings import to_dict, validate
from sparse_pipeline.shared.errors import ConfigError, DataError, PipelineError, UsageError
from sparse_pipeline.shared.overview.status import run_entry
from sparse_pipeline.shared.runs.folder import create_run, open_run
from sparse_pipeline.shared.runs.verify import verify_run
from sparse_pipeline.tune import run as tuning
from sparse_pipeline.tune.config import TuneConfig
from sparse_pipeline.tune.plan import ARCHITECTURES as TUNED
from sparse_pipeline.tune.plan import plan, refuse_coder, rows_of

FEW: dict[str, Any] = {"tokens": 1000, "sequences": 4, "eval_sequences": 4}
"""Four steps."""


@pytest.fixture
def here(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workshop's runs beside its cache, and the current folder."""
    (tmp_path / "cache").symlink_to(workshop / "cache")
    shutil.copytree(workshop / "runs", tmp_path / "runs")
    shutil.copy2(workshop / "pipeline.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(run: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = open_run(Path("runs") / run).load_coder().state_dict()
    return found


def refused(error: type[PipelineError], call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(error) as found:
        call()
    text = f"{found.value.message}\n{found.value.hint}"
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize(
    ("update", "moved"),
    [
        ("full", {"w_enc", "b_enc", "w_dec", "b_dec"}),
        ("encoder", {"w_enc", "b_enc"}),
        ("decoder", {"w_dec", "b_dec"}),
        ("lora", {"w_enc", "w_dec"}),
    ],
)
def test_only_what_is_chosen_moves(update: Any, moved: set[str], here: Path) -> None:
    rank = {"rank": 3} if update == "lora" else {}
    result = sp.run_tune("topk", update=update, name="t", **FEW, **rank)
    before, after = state("topk"), state("t")
    assert {name for name in before if not torch.equal(before[name], after[name])} == moved
    torch.testing.assert_close(after["w_dec"].norm(dim=1), torch.ones(128), rtol=1e-5, atol=0)
    if update == "lora":  # decoder rows are rescaled besides, so the encoder shows the rank
        values = torch.linalg.svdvals(after["w_enc"].double() - before["w_enc"].double())
        assert int((values > 1e-3 * values[0]).sum()) == 3
    if update == "decoder":
        assert (result.before["l0"], result.before["dead"]) == (result.after["l0"], result.after["dead"])
        x = sp.open_cache("demo").rows("layer_02.resid_mid", np.arange(50))
        codes = [sp.load_coder(name).encode(x).dense() for name in ("topk", "t")]
        assert torch.equal(*codes)


def test_tuning_lowers_kl_on_held_out_text_and_says_so_everywhere(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = pipeline.run(
        [
            "tune",
            "topk",
            "--json",
            "--set",
            "tune.tokens=4000",
            "--set",
            "tune.lr=2.26e-3",
            "--set",
            "tune.eval_sequences=12",
        ]
    )
    result = json.loads(capsys.readouterr().out)
    assert code == 0
    before, after = result["before"], result["after"]
    assert after["kl"] < 0.97 * before["kl"]
    assert after["ce"] - after["ce_clean"] < before["ce"] - before["ce_clean"]
    assert (before["ce_clean"], before["ce_zero"]) == (after["ce_clean"], after["ce_zero"])
    assert before["l0"] == after["l0"] == 8.0
    assert result["evaluated_on"] == "heldout"

    run, parent = open_run("runs/topk-tuned"), open_run("runs/topk")
    assert run.summary["tuned"] == {"of": "topk", "before": before, "after": after}
    assert run.provenance["tuned"] == {"run": "runs/topk", "sha256": parent.final["sha256"]}
    assert run.final["training"]["data"] == parent.final["training"]["data"]
    assert verify_run(run.path).ok
    assert run_entry(run.path)["fvu"] == after["fvu"]
    lines = run.metrics()
    assert {"loss", "reconstruction", "kl", "alpha", "l0", "lr", "grad_norm"} <= lines[0].keys()
    assert lines[-1]["step"] == result["steps"]
    assert lines[-1]["tokens"] == result["tokens"]

    # FVU and dead latents, by hand over the same held-out rows
    cache, coder = sp.open_cache("demo"), sp.load_coder("topk-tuned")
    assert coder.source is not None
    assert coder.target is not None
    heldout = split_rows(cache, 0.05).heldout
    positions = np.tile(np.arange(cache.ctx), cache.n_seq)
    with_some = np.flatnonzero((heldout & (positions > 0)).reshape(-1, cache.ctx).any(1))
    chosen = with_some[np.linspace(0, len(with_some) - 1, 12).round().astype(int)]
    rows = np.flatnonzero(heldout & (positions > 0) & np.isin(np.arange(cache.n_rows) // cache.ctx, chosen))
    x, y = cache.rows(coder.source, rows), cache.rows(coder.target, rows).double().numpy()
    codes = coder.encode(x)
    y_hat = coder.decode(codes).detach().double().numpy()
    fvu = ((y - y_hat) ** 2).sum() / ((y - cache.stats(coder.target).rest.mean) ** 2).sum()
    assert after["rows"] == len(rows)
    assert after["fvu"] == pytest.approx(fvu, rel=1e-6)
    assert after["dead"] == int((codes.dense() > 0).any(0).logical_not().sum())

    compared = sp.run_analyze(["topk", "topk-tuned"], only="global", name="both", max_tokens=2048, controls=False)
    assert compared.comparison is not None
    assert set(compared.comparison["groups"]) == {"topk", "topk-tuned"}, "not two seeds of one setting"
    report = json.loads(Path(compared.report).with_name("report.json").read_text(encoding="utf-8"))
    (table,) = (one for one in report["comparison"]["tables"] if one["key"] == "tuning")
    assert ["KL (nats)", show(before["kl"]), show(after["kl"])] in table["rows"]
    assert pipeline.run(["export", "topk-tuned", "out", "--to", "saelens", "--rows", "64"]) == 0


def test_an_interrupted_run_resumes_to_the_same_bytes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {**FEW, "checkpoint_every": 2, "log_every": 1, "update": "lora"}
    whole = sp.run_tune("topk", name="whole", **settings)
    real, left = tuning.tune_step, [3]

    def cut(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("power cut")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "tune_step", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            sp.run_tune("topk", name="cut", **settings)
    entry = run_entry(Path("runs/cut"))
    assert (entry["complete"], entry["next"]) == (False, "pipeline tune -c runs/cut --resume")
    refused(DataError, lambda: sp.load_coder("cut"), "pipeline")
    refused(UsageError, lambda: sp.run_tune("topk", name="cut", **settings), "already exists", "--resume")
    changed = {**settings, "beta": 2.0}
    refused(DataError, lambda: sp.run_tune("topk", name="cut", resume=True, **changed), "beta: the run has 1.0")

    assert pipeline.run(["tune", "-c", "runs/cut", "--resume"]) == 0
    a, b = (open_run(f"runs/{name}") for name in ("whole", "cut"))
    weights = [(one.path / "final/coder.safetensors").read_bytes() for one in (a, b)]
    assert weights[0] == weights[1]
    assert a.summary["tuned"] == b.summary["tuned"]
    timeless = [
        [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in run.metrics()] for run in (a, b)
    ]
    assert timeless[0] == timeless[1]
    assert [line["step"] for line in timeless[0]] == list(range(1, whole.steps + 1))
    assert sp.run_tune("topk", name="whole", resume=True, **settings) == whole, "a finished run stays as it is"


def planted(name: str, training: bool = True, **coder: Any) -> Path:
    """A finished run with random weights on the workshop's cache."""
    parent = open_run("runs/topk")
    config = validate(ARCHITECTURES.configs()[name], {"architecture": name, "latents": 32, **coder}, "coder")
    made = build_coder(config, 128, 128, tied=True, generator=torch.Generator().manual_seed(0))
    final = parent.final
    extra = {"source": "layer_02.mlp_out", "target": "layer_02.mlp_out", "cache": final["cache"]}
    if training:
        extra["training"] = {**final["training"], "coder": to_dict(config)}
    run = create_run("runs", f"random-{name}", parent.config, {"cache": final["cache"]})
    run.finish(made, {"steps": 10}, extra)
    return run.path


@pytest.mark.parametrize("name", TUNED)
def test_every_architecture_tunes(name: str, here: Path) -> None:
    own: dict[str, Any] = {"topk": {"k": 4}, "batchtopk": {"k": 4}, "matryoshka": {"k": 4}}.get(name, {})
    path = planted(name, **own)
    result = sp.run_tune(path, name="t", tokens=400, sequences=4, eval_sequences=2)
    before, after = state(path.name), state("t")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"w_enc", "w_dec"} <= moved
    assert result.after["kl"] is not None
    assert all(torch.isfinite(value).all() for value in after.values())


def test_rows_of_held_out_documents_position_0_and_the_samplers_exclusions_keep_their_activations(here: Path) -> None:
    final = open_run("runs/topk").final
    cache = sp.open_cache("demo")
    split = split_rows(cache, 0.05)
    rows = rows_of(cache, final)
    later = np.tile(np.arange(cache.ctx), cache.n_seq) > 0
    np.testing.assert_array_equal(rows.train, split.train & later)
    np.testing.assert_array_equal(rows.measured, split.heldout & later)
    massive = cache.massive_rows(["layer_02.resid_mid", "layer_02.mlp_out"])
    for choice in ("exclude", "clip"):
        sampler = {"sampler": {"kind": "uniform", "massive": choice}}
        without = rows_of(cache, {**final, "training": {**final["training"], **sampler}})
        np.testing.assert_array_equal(without.replaced, rows.replaced & ~massive)
    nothing = rows_of(cache, {**final, "training": {**final["training"], "data": {"heldout": 0.0}}})
    assert not nothing.heldout
    np.testing.assert_array_equal(nothing.measured, nothing.train)
    planned = plan(TuneConfig(run=Path("runs/topk"), sequences=7))
    first = np.concatenate([planned.sequences(step) for step in range(1, len(planned.order) // 7 + 1)])
    assert len(set(first)) == len(first), "each sequence once in a pass"
    assert set(first) <= set(np.flatnonzero(rows.train.reshape(-1, cache.ctx).any(1)))


def test_another_model_and_too_little_memory_are_refused_before_anything_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    shutil.copytree(DEMO_MODEL, here / "other")
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(-1)
    model.save_pretrained(here / "other")
    refused(DataError, lambda: sp.run_tune("topk", model=str(here / "other"), **FEW), "is not the model of", "differ")
    assert not Path("runs/topk-tuned").exists()
    monkeypatch.setattr("sparse_pipeline.tune.plan.free_memory", lambda device: 10_000_000)
    refused(
        PipelineError,
        lambda: sp.run_tune("topk", sequences=8),
        "33.6 MB for the logits of a step of 8 sequences",
        "tune.sequences=2",
    )
    assert not Path("runs/topk-tuned").exists()


def test_bad_inputs_are_refused_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(DataError, lambda: sp.run_tune("tipk"), "tipk")
    refused(ConfigError, lambda: sp.run_tune("topk", rank=4), "rank: 4 does nothing with update: full")
    refused(ConfigError, lambda: sp.run_tune("topk", beta=-1), "beta must be 0 or more")
    refused(ConfigError, lambda: sp.run_tune("topk", updates="full"), "update")
    refused(UsageError, lambda: plan(TuneConfig()), "no run is named")
    refused(DataError, lambda: sp.run_tune("topk", name="never", resume=True), "there is no run runs/never")
    refused(UsageError, lambda: sp.run_tune("topk", name="matryoshka"), "runs/matryoshka already exists")
    refused(DataError, lambda: sp.run_tune("topk", name="matryoshka", resume=True), "is not a tuned run")
    refused(UsageError, lambda: sp.run_tune("topk", model="nowhere/at-all"), "--model")

    run, config = open_run("runs/topk"), TuneConfig()
    final = run.final
    of = {"architecture": "crosscoder"}
    refused(UsageError, lambda: refuse_coder(run, {**final, "coder": of}, config), "topk is a crosscoder", "batchtopk")
    refused(UsageError, lambda: refuse_coder(run, {**final, "source_widths": [64, 64]}, config), "several sites")
    penalised = planted("relu", training=False)
    refused(UsageError, lambda: sp.run_tune(penalised), "imported relu", "tune.update=decoder")
    aimed = planted("gated", l0_target=5.0)
    refused(UsageError, lambda: sp.run_tune(aimed), "target L0", "tune.update=decoder")
    refuse_coder(open_run(aimed), open_run(aimed).final, replace(config, update="decoder"))
    aimed = planted("jumprelu", l0_target=5.0)  # its penalty holds the target itself
    refuse_coder(open_run(aimed), open_run(aimed).final, config)

    capsys.readouterr()
    assert pipeline.run(["tune", "topk", "--dry-run", "--json", "--set", "tune.tokens=1200"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["run"], document["path"], document["steps"]) == ("runs/topk", "runs/topk-tuned", 3)
    assert not Path("runs/topk-tuned").exists()
