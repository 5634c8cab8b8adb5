"""The loop as a whole: what a run leaves behind, several runs on one read, what stops it and what is left then."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparse_pipeline
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.cache.heldout import split_rows
from sparse_pipeline.shared.coders import Coder
from sparse_pipeline.shared.coders.relu import ReLUConfig
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.errors import DataError, PipelineError, UsageError
from sparse_pipeline.shared.glossary import COLUMNS
from sparse_pipeline.shared.runs.curves import PICKS
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.data.stream import open_stream
from sparse_pipeline.train.loop import plan, runs_text
from sparse_pipeline.train.loop import train as train_runs
from sparse_pipeline.train.penalties.decoder_orthogonality import DecoderOrthogonalityConfig
from sparse_pipeline.train.penalties.topk_pairs import TopkPairsConfig
from sparse_pipeline.train.samplers import build_sampler
from sparse_pipeline.train.step.autograd import train_step
from sparse_pipeline.train.step.begin import new_trainee
from tests.sealed import reseal
from tests.synthetic import make_cache, sparse_acts, token_table
from tests.train.conftest import MATRYOSHKA, SOURCE, TARGET, TOPK

MakeConfig = Callable[..., TrainConfig]


def weights(config: TrainConfig) -> bytes:
    return (config.path / "final" / "coder.safetensors").read_bytes()


def test_a_run_leaves_everything_that_analysis_needs(config: MakeConfig, cache: Cache) -> None:
    made = config(penalties={"decoder_orthogonality": DecoderOrthogonalityConfig(weight=0.1)})
    (summary,) = train_runs([made])
    run = open_run(made.path)
    steps = plan([made]).groups[0].steps
    assert (summary.name, summary.steps, summary.tokens) == ("topk", steps, steps * 64)
    assert run.load_coder().config == TOPK
    final = run.final
    assert final["source"] == SOURCE
    assert final["target"] == TARGET
    assert final["cache"] == {"path": str(cache.path), "identity": cache.identity}
    assert {"steps", "tokens", "fvu", "fvu_with_bos", "l0", "dead", "seconds"} <= final["summary"].keys()
    lines = run.metrics()
    assert [line["step"] for line in lines] == sorted({1, *range(10, steps, 10), steps})
    named = {"loss", "loss_ema", "reconstruction", "decoder_orthogonality", "decoder_orthogonality/weight", "fvu", "l0"}
    named |= {"fvu_with_bos", "active", "dead", "lr", "grad_norm", "tokens_per_second", "wait_share", "epoch", "tokens"}
    assert all(named <= line.keys() for line in lines)
    last = lines[-1]
    assert last["loss"] == pytest.approx(last["reconstruction"] + 0.1 * last["decoder_orthogonality"], rel=1e-6)
    assert last["epoch"] == pytest.approx(steps * 64 / plan([made]).groups[0].stream.rows_per_epoch)
    assert [path.name for path in run.checkpoints()][-1] == f"step_{steps:08d}"
    assert len(run.checkpoints()) == made.keep_checkpoints
    assert json.dumps(summary.to_dict(), allow_nan=False)
    record = json.loads((made.path / "final/record.json").read_bytes())
    assert record == summary.record == final["summary"]["record"]
    assert (record["run"], record["site"], record["target"], record["latents"]) == ("topk", SOURCE, TARGET, 64)
    assert record["layer"] == int(SOURCE[6:8])
    assert record["lr"] == made.optimizer.peak_lr(64)
    assert record["penalties"]["decoder_orthogonality"]["weight"] == 0.1
    assert record["metrics"].keys() == PICKS.keys()
    assert record["metrics"]["loss"] == last["loss"]
    assert record["metrics"]["orthogonality"] == pytest.approx(0.1 * last["decoder_orthogonality"])
    assert record["started"] <= record["finished"]
    assert record["seconds"] == summary.seconds
    assert record["peak_memory"]["process"] > 1 << 26


def test_every_step_logs_its_losses_its_latents_its_pairs_and_its_gradient(config: MakeConfig, cache: Cache) -> None:
    """With `log_every: 1`, and each figure anew from the codes of its step."""
    made = config(
        coder=ReLUConfig(latents=24, l1_coef=0.04),
        penalties={"topk_pairs": TopkPairsConfig(weight=0.1, share=0.05, threshold=0.1)},
        log_every=1,
        data={"epochs": 1},
    )
    group = plan([made]).groups[0]
    trainee = new_trainee(made, cache, group.steps, group.stream.rows_per_epoch, group.device)
    expected: list[dict[str, float]] = []
    with open_stream(cache, group.sites, made.data, build_sampler(made.sampler)) as stream:
        for rows in stream:
            result = train_step(trainee, rows)
            z = result.codes().dense().double().numpy()
            unit = z[rows.position.numpy() > 0]
            norms = np.linalg.norm(unit, axis=0)
            unit = unit / np.where(norms > 0, norms, 1)
            overlap = (unit.T @ unit)[np.triu_indices(24, 1)]
            best = np.argsort(-overlap)[: int(0.05 * len(overlap))]
            ends = {int(np.triu_indices(24, 1)[side][pair]) for pair in best for side in (0, 1)}
            expected.append(
                {
                    "active": int((z > 0).any(axis=0).sum()),
                    "l0": float((z > 0).sum(axis=1).mean()),
                    "topk_pairs": float((np.maximum(overlap[best] - 0.1, 0) ** 2).mean()),
                    "topk_pairs/unique_latents": len(ends),
                    "topk_pairs/max_overlap": float(overlap[best].max()),
                    "topk_pairs/mean_overlap": float(overlap[best].mean()),
                    "grad_norm": float(result.grad_norm),
                }
            )
    train_runs([made])
    lines = open_run(made.path).metrics()
    assert len(lines) == group.steps == len(expected)
    averages: dict[str, float] = {}
    for line, wanted in zip(lines, expected, strict=True):
        assert {name: line[name] for name in wanted} == {k: pytest.approx(v, rel=1e-4) for k, v in wanted.items()}
        parts = line["reconstruction"] + line["sparsity"] + 0.1 * line["topk_pairs"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
        for term in ("loss", "reconstruction", "sparsity", "topk_pairs"):
            before = averages.get(term, line[term])
            averages[term] = 0.99 * before + 0.01 * line[term]
            assert line[f"{term}_ema"] == pytest.approx(averages[term], rel=1e-4, abs=1e-9)
    assert all(0 <= line["topk_pairs/stability"] <= 1 for line in lines[1:])


def test_a_short_report_with_every_nth_checkpoint(config: MakeConfig, cache: Cache) -> None:
    """That of the last step has the final figures; reports change no bit of the coder."""
    plain = config(name="plain")
    steps = plan([plain]).groups[0].steps
    made = config(name="reported", checkpoint_every=10, report_every=2)
    ending = config(name="ending", checkpoint_every=steps, report_every=1)
    without, _, summary = train_runs([plain, made, ending])
    assert weights(made) == weights(ending) == weights(plain)
    stems = {
        one.run_name: [file.stem for file in sorted((one.path / "progress").glob("*.json"))] for one in (made, ending)
    }
    assert stems == {
        "reported": [f"step_{step:08d}" for step in range(20, steps + 1, 20)],
        "ending": [f"step_{steps:08d}"],
    }
    last = json.loads((ending.path / f"progress/step_{steps:08d}.json").read_bytes())
    for key in ("fvu", "fvu_with_bos", "fvu_dims", "l0"):
        assert last["evaluation"][key] == getattr(summary, key) == getattr(without, key)
    assert summary.record is not None
    assert last["metrics"] == summary.record["metrics"]
    page = (ending.path / "progress/index.html").read_text(encoding="utf-8")
    assert f"{last['evaluation']['fvu']:.4g}" in page
    assert not (plain.path / "progress").exists()


def test_it_learns_and_the_figures_agree_with_numpy(config: MakeConfig, cache: Cache) -> None:
    made = config(data={"epochs": 8}, optimizer=OptimizerConfig(lr=3e-3))
    (summary,) = train_runs([made])
    assert summary.fvu is not None
    assert summary.fvu_untrained is not None
    assert summary.fvu < 0.5 < summary.fvu_untrained
    coder = open_run(made.path).load_coder().double()
    rows = np.flatnonzero(split_rows(cache, made.data.heldout).heldout)
    x = cache.rows(SOURCE, rows).double()
    y = cache.rows(TARGET, rows).double().numpy()
    with torch.no_grad():
        y_hat = coder.decode(coder.encode(x)).numpy()
    rest = rows % cache.ctx > 0
    stats = cache.stats(TARGET)
    fvu = ((y - y_hat)[rest] ** 2).sum() / ((y[rest] - stats.rest.mean) ** 2).sum()
    with_bos = ((y - y_hat) ** 2).sum() / ((y - stats.all.mean) ** 2).sum()
    assert summary.fvu == pytest.approx(fvu, rel=1e-4)
    assert summary.fvu_with_bos == pytest.approx(with_bos, rel=1e-4)


def test_neighbours_do_not_change_what_a_run_is_evaluated_on(config: MakeConfig, cache: Cache) -> None:
    (alone,) = train_runs([config(name="alone", eval_rows=50)])
    few, many = train_runs([config(name="few", eval_rows=50), config(name="many", eval_rows=200)])
    assert (few.fvu, few.fvu_with_bos, few.l0) == (alone.fvu, alone.fvu_with_bos, alone.l0)
    assert many.fvu != few.fvu
    rows = [open_run(config(name=name).path).summary["rows"] for name in ("alone", "few", "many")]
    assert rows[:2] == [50, 50]
    assert rows[2] > 50


def test_the_logged_fvu_of_a_batch_is_the_formula(config: MakeConfig, cache: Cache, monkeypatch: Any) -> None:
    made = config()
    seen: list[tuple[dict[str, Any], Any, Coder]] = []
    step = sparse_pipeline.train.loop.train_step

    def watch(trainee: Any, rows: Any, measure: bool = False) -> Any:
        before = copy.deepcopy(trainee.coder)
        result = step(trainee, rows, measure)
        if measure:
            seen.append((result.measures, rows, before))
        return result

    monkeypatch.setattr(sparse_pipeline.train.loop, "train_step", watch)
    train_runs([made])
    assert len(seen) > 5
    for measures, rows, coder in seen:
        x, y = rows.acts[SOURCE].float(), rows.acts[TARGET].double()
        with torch.no_grad():
            y_hat = coder.decode(coder.encode(x)).double()
        rest, stats = rows.position > 0, cache.stats(TARGET)
        fvu = (y - y_hat)[rest].square().sum() / (y[rest] - torch.from_numpy(stats.rest.mean)).square().sum()
        with_bos = (y - y_hat).square().sum() / (y - torch.from_numpy(stats.all.mean)).square().sum()
        assert measures["fvu"] == pytest.approx(float(fvu), rel=1e-4)
        assert measures["fvu_with_bos"] == pytest.approx(float(with_bos), rel=1e-4)


def test_progress_says_whose_fvu_it_shows(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [config(name="a"), config(name="b")]
    assert ", once for 2 runs" in str(plan(pair))
    assert ", once for 1 run\n" in str(plan(pair[:1]))
    summaries = train_runs(pair, Console())
    a, b = (f"{open_run(made.path).metrics()[-1]['fvu']:.4g}" for made in pair)
    table = [line.split() for line in capsys.readouterr().err.splitlines()[-6:]]
    assert table[0] == ["loss", "batch", "FVU", "L0"]
    assert {row[0]: row[2] for row in table[1:3]} == {"a": a, "b": b}
    lines = runs_text(summaries).splitlines()
    fvu = {line.split()[0]: line.split()[1] for line in lines if line.startswith(("a ", "b "))}
    assert fvu == {one.name: f"{one.fvu:.4f}" for one in summaries}
    assert f"  held-out FVU  {COLUMNS['held-out FVU']}" in lines


def test_runs_trained_side_by_side_have_the_bits_of_runs_trained_alone(config: MakeConfig, tmp_path: Path) -> None:
    variants = [
        {"name": "a", "coder": TOPK},
        {"name": "b", "coder": MATRYOSHKA, "seed": 3},
        {"name": "c", "coder": MATRYOSHKA, "freeze": ("w_dec",)},
        {"name": "d", "coder": TOPK, "target": None},  # an SAE reads fewer sites
    ]
    together = [config(**variant) for variant in variants]
    assert len(plan(together).groups) == 1
    train_runs(together)
    for variant in variants:
        alone = config(**variant, runs=tmp_path / "alone")
        train_runs([alone])
        assert weights(alone) == weights(config(**variant))


def test_runs_with_other_data_settings_get_a_stream_of_their_own(config: MakeConfig) -> None:
    groups = plan([config(name="a"), config(name="b", data={"seed": 1}), config(name="c")]).groups
    assert [[member.run_name for member in group.configs] for group in groups] == [["a", "c"], ["b"]]


def test_a_frozen_random_decoder_stays_as_it_started(config: MakeConfig) -> None:
    made = config(freeze=("w_dec",))
    (summary,) = train_runs([made])
    w_dec = open_run(made.path).load_coder().w_dec.detach()
    torch.testing.assert_close(w_dec.norm(dim=1), torch.ones(64))
    first = open_run(made.path).load_checkpoint(open_run(made.path).checkpoints()[0])
    assert first is not None
    assert torch.equal(first.coder["w_dec"], w_dec)
    assert summary.fvu is not None
    assert "w_dec.exp_avg" not in " ".join(first.optimizer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_it_came_in_and_resuming_gives_the_same_bits(
    config: MakeConfig, tmp_path: Path, monkeypatch: Any, number: signal.Signals
) -> None:
    whole = config(runs=tmp_path / "whole")
    train_runs([whole])
    made = config()
    step = sparse_pipeline.train.loop.train_step

    def interrupted(trainee: Any, rows: Any, measure: bool = False) -> Any:
        if trainee.step == 26:
            os.kill(os.getpid(), number)
        return step(trainee, rows, measure)

    with monkeypatch.context() as patch:
        patch.setattr(sparse_pipeline.train.loop, "train_step", interrupted)
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt) as stopped:
            train_runs([made])
        assert signal.getsignal(number) is before
    run = open_run(made.path, allow_incomplete=True)
    assert run.checkpoints()[-1].name == "step_00000027"
    total = int(open_run(whole.path).summary["steps"])
    assert str(stopped.value) == f"{made.path} saved at step 27 of {total}"
    assert not run.complete
    with pytest.raises(UsageError, match="already exists"):
        train_runs([made])
    train_runs([made], resume=True)
    assert weights(made) == weights(whole)
    strip = ("tokens_per_second", "wait_share")
    logged, expected = (
        [{key: value for key, value in line.items() if key not in strip} for line in open_run(c.path).metrics()]
        for c in (made, whole)
    )
    assert logged == expected


def test_runs_stopped_at_different_steps_go_on_together(config: MakeConfig, tmp_path: Path) -> None:
    names = ("a", "b")
    whole = [
        config(name=name, runs=tmp_path / "whole", coder=coder)
        for name, coder in zip(names, (TOPK, MATRYOSHKA), strict=True)
    ]
    train_runs(whole)
    made = [
        config(name=name, coder=coder, keep_checkpoints=None)
        for name, coder in zip(names, (TOPK, MATRYOSHKA), strict=True)
    ]
    train_runs(made)
    for member, keep in zip(made, (1, 2), strict=True):  # as after a kill between two saves
        shutil.rmtree(member.path / "final")
        for late in open_run(member.path, allow_incomplete=True).checkpoints()[keep:]:
            shutil.rmtree(late)
    train_runs(made, resume=True)
    assert [weights(member) for member in made] == [weights(member) for member in whole]


def test_resuming_a_finished_run_changes_nothing(config: MakeConfig) -> None:
    made = config()
    (first,) = train_runs([made])
    before = weights(made)
    (again,) = train_runs([made], resume=True)
    assert again == first
    assert weights(made) == before


def test_a_loss_that_is_not_finite_names_step_and_culprit_and_keeps_the_last_checkpoint(
    config: MakeConfig, monkeypatch: Any
) -> None:
    made, other = config(), config(name="other")
    step = sparse_pipeline.train.loop.train_step

    def poisoned(trainee: Any, rows: Any, measure: bool = False) -> Any:
        if trainee.step == 30 and trainee.config.path == made.path:
            with torch.no_grad():
                trainee.coder.w_enc[5:8] = torch.nan
        return step(trainee, rows, measure)

    monkeypatch.setattr(sparse_pipeline.train.loop, "train_step", poisoned)
    with pytest.raises(PipelineError, match="step 31") as caught:
        train_runs([made, other])
    assert caught.value.exit_code == 1
    assert "reconstruction is nan" in caught.value.message
    assert "w_enc is not finite in 3 of 64 rows, 5–7" in caught.value.message
    assert open_run(made.path, allow_incomplete=True).checkpoints()[-1].name == "step_00000020"
    assert open_run(other.path, allow_incomplete=True).checkpoints()[-1].name == "step_00000031"


def test_rows_that_are_not_finite_are_named(config: MakeConfig, tmp_path: Path) -> None:
    table = token_table(160, 16)
    acts = sparse_acts(table, {SOURCE: 32, TARGET: 32})
    acts[TARGET][777, 3] = torch.inf
    bad = make_cache(tmp_path / "bad", acts=acts, table=table, n_seq=160, ctx=16)
    refused(
        [config(cache=bad.path)],
        DataError,
        r"1 row of layer_01.mlp_out hold an infinity or a NaN",
    )
    # Past that check (as when a file changes under a running process), the step itself says which row it was.
    made = config(data={"heldout": 0.0})
    group = plan([made]).groups[0]
    trainee = new_trainee(made, group.cache, group.steps, group.stream.rows_per_epoch, group.device)
    with (
        open_stream(bad, group.sites, made.data, build_sampler(made.sampler)) as stream,
        pytest.raises(PipelineError, match=r"rows of layer_01.mlp_out are not finite \(the first is cache row 777\)"),
    ):
        for rows in stream:
            train_step(trainee, rows)


# what is refused before anything is written


def refused(configs: list[TrainConfig], kind: type[PipelineError], said: str, resume: bool = False) -> PipelineError:
    with pytest.raises(kind, match=said) as caught:
        train_runs(configs, resume=resume)
    return caught.value


def test_too_few_steps_are_refused_with_the_arithmetic(config: MakeConfig) -> None:
    made = config(min_steps=1000)
    rows = plan([config()]).groups[0].stream.rows_per_epoch
    error = refused([made], UsageError, "fewer than train.min_steps = 1000")
    assert f"{rows:,} tokens (5% of the documents held out) × 2 epochs / batches of 64 = " in error.message
    assert f"= {rows * 2 // 64})" in error.message
    assert "train.data.heldout" in str(error.hint)
    refused([config(min_steps=1000, data={"tokens": 640})], UsageError, "640 tokens / batches of 64 = 10")
    assert not made.path.exists()


def test_a_warmup_as_long_as_the_run_is_refused(config: MakeConfig) -> None:
    refused([config(optimizer=OptimizerConfig(warmup_steps=500))], UsageError, "warmup_steps = 500")


def test_an_unknown_site_lists_those_that_exist(config: MakeConfig) -> None:
    error = refused([config(source="layer_01.resid_mi")], UsageError, "did you mean 'layer_01.resid_mid'")
    assert error.hint is not None
    assert TARGET in error.hint
    refused([config(target="layer_09.mlp_out")], UsageError, "train.target")


def test_a_missing_or_unnamed_cache_is_refused(config: MakeConfig, tmp_path: Path) -> None:
    refused([config(cache=tmp_path / "nowhere")], DataError, "nowhere")
    refused([config(cache=None)], UsageError, "train.cache is not set")


def test_two_runs_of_one_name_are_refused(config: MakeConfig) -> None:
    refused([config(name="x"), config(name="x", seed=1)], UsageError, "two runs would be named x")


def test_resuming_with_other_settings_lists_every_difference(config: MakeConfig, tmp_path: Path) -> None:
    train_runs([config()])
    error = refused([config(seed=1, data={"batch_size": 32})], DataError, "different settings", resume=True)
    assert "seed: the run has 0, this config has 1" in error.message
    assert "data.batch_size: the run has 64, this config has 32" in error.message
    train_runs(
        [config(log_every=3, checkpoint_every=7, data={"workers": 2})], resume=True
    )  # these do not reach the weights
    other = make_cache(tmp_path / "other", n_seq=160, ctx=16, seed=9)
    refused([config(cache=other.path)], DataError, "cache: the run was trained on", resume=True)


def test_a_device_that_is_not_there_is_refused(config: MakeConfig) -> None:
    refused([config(device="cuda:97")], UsageError, "cuda:97")
    refused([config(device="toaster")], UsageError, "not a device")


def test_a_run_in_training_is_locked(config: MakeConfig) -> None:
    made = config()
    train_runs([made])
    (made.path / "final" / "config.json").unlink()
    with open_run(made.path, allow_incomplete=True).lock():
        refused([made], PipelineError, "being trained by another process", resume=True)


def start_with(config: Path, text: str) -> None:
    """As if the run had been started with these settings."""
    config.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(config.read_bytes()).hexdigest()
    reseal(config.with_name("provenance.json"), lambda document: document.update(config_sha256=digest))


def test_a_run_from_before_a_setting_came_into_being_goes_on(config: MakeConfig) -> None:
    made = config()
    train_runs([made])
    file = made.path / "config.yaml"
    text = file.read_text(encoding="utf-8")
    assert "grad_clip: 1.0" in text
    start_with(file, text.replace("  grad_clip: 1.0\n", ""))
    before = weights(made)
    train_runs([made], resume=True)
    assert weights(made) == before
    with pytest.raises(DataError, match="grad_clip"):
        train_runs([config(optimizer=OptimizerConfig(grad_clip=2.0))], resume=True)
    start_with(file, text + "gone: 1\n")
    with pytest.raises(DataError, match="gone: the run has 1, this config has none"):
        train_runs([made], resume=True)
