"""Memory is looked at before a run has a folder, and a start that failed leaves nothing that blocks the next one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest

from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.config.settings import apply_set, to_dict, validate
from sparse_pipeline.shared.console import size
from sparse_pipeline.shared.errors import PipelineError, UsageError
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.loop import plan, train
from sparse_pipeline.train.runs.session import open_runs
from tests.train.conftest import TOPK

MakeConfig = Callable[..., TrainConfig]


def free(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=n))


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"coder": TopKConfig(latents=1 << 20, k=4)}, "train.coder.latents"),
        ({"data": {"resident": True, "batch_size": 64}}, "train.data.memory_gb"),
        ({"data": {"pool_rows": 2560, "resident": False}}, "train.data.memory_gb"),
        (
            {"coder": TopKConfig(latents=4096, k=4), "data": {"batch_size": 4096}, "min_steps": 1},
            "train.data.batch_size",
        ),
    ],
)
def test_too_large_a_run_is_refused_with_numbers_and_a_cure_that_works(
    changes: dict[str, Any], cure: str, config: MakeConfig, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(**changes)
    if cure.startswith("train.data.m"):
        made = replace(made, coder=TopKConfig(latents=16, k=4))
    (group,) = plan([made]).groups
    needed = sum(group.bytes.values())
    room = {"train.coder.latents": 50_000_000, "train.data.memory_gb": needed - 40_000}.get(cure, 10_000_000)
    free(monkeypatch, room)
    (group,) = plan([made]).groups
    needed = sum(group.bytes.values())
    assert needed > room
    assert "NOT ENOUGH" in str(plan([made]))
    expected = f"needs {re.escape(size(needed))} .*, {re.escape(size(room))} are free"
    with pytest.raises(PipelineError, match=expected) as caught:
        train([made])
    assert not made.path.exists()
    sets = re.findall(r"--set (train\.\S+[^\s,])", str(caught.value.hint))
    assert any(one.startswith(cure) for one in sets)
    cured = validate(TrainConfig, apply_set({"train": to_dict(made)}, sets)["train"])
    assert sum(plan([cured]).groups[0].bytes.values()) < room
    if cure == "train.data.memory_gb":
        assert train([cured])[0].steps


def test_runs_side_by_side_that_fit_one_after_the_other(
    config: MakeConfig, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder = TopKConfig(latents=8192, k=4)
    configs = [config(name=name, coder=coder, seed=seed) for seed, name in enumerate("abc")]
    alone = sum(plan(configs[:1]).groups[0].bytes.values())
    free(monkeypatch, 2 * alone)
    with pytest.raises(PipelineError, match="training 3 runs on cpu needs") as caught:
        train(configs)
    assert caught.value.hint == "train the runs one after the other: one command for each"


def test_monitors_and_averaged_weights_count(config: MakeConfig) -> None:
    from sparse_pipeline.train.monitors.utilisation import UtilisationConfig

    plain, watched, averaged = (
        plan([config(**changes)]).groups[0].bytes
        for changes in ({}, {"monitors": {"utilisation": UtilisationConfig()}, "monitor_window": 7}, {"ema": 0.9})
    )
    assert watched["windows"] - plain["windows"] == 7 * 64 * (12 * 4 + 4)
    assert averaged["coders and Adam"] == plain["coders and Adam"] * 5 // 4


def test_a_start_that_failed_does_not_block_the_corrected_command(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config()
    run = open_runs(plan([made]).groups, resume=False)[made.path]  # and then the power fails
    assert run.untouched
    with run.lock(), pytest.raises(PipelineError, match="is being trained by another process"):
        train([config(coder=TopKConfig(latents=32, k=2))])
    corrected = config(coder=TopKConfig(latents=32, k=2))
    assert train([corrected])[0].steps
    assert open_run(made.path).config["coder"]["latents"] == 32
    with pytest.raises(UsageError, match="already exists"):  # a run that did steps stays
        train([made])


def test_a_run_that_logged_a_step_is_kept(config: MakeConfig) -> None:
    made = config(coder=TOPK)
    run = open_runs(plan([made]).groups, resume=False)[made.path]
    run.log({"step": 1, "loss": 1.0})
    assert not run.untouched
    with pytest.raises(UsageError, match="already exists"):
        train([config(coder=TopKConfig(latents=32, k=2))])
    assert train([made], resume=True)[0].steps
