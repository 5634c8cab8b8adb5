"""A plan before the harvest: the numbers of the plan after it, up to the split of documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_pipeline.resolve import resolve, train_configs, unharvested
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.train.config import TrainConfig, with_precision
from sparse_pipeline.train.plan import Unharvested, plan
from sparse_pipeline.train.runs.session import open_runs
from sparse_pipeline.train.samplers.exclude_bos import ExcludeBosConfig
from sparse_pipeline.train.samplers.position_stratified import PositionStratifiedConfig
from sparse_pipeline.train.samplers.uniform import UniformConfig
from sparse_pipeline.train.step.begin import new_trainee
from tests.synthetic import make_cache


@pytest.mark.parametrize(
    "sampler", [UniformConfig(), ExcludeBosConfig(), PositionStratifiedConfig(bos_factor=0.5)], ids=lambda one: one.kind
)
@pytest.mark.parametrize("data", [{"heldout": 0.0}, {"heldout": 0.2}, {"heldout": 0.2, "tokens": 2000, "epochs": 1}])
def test_before_the_harvest_as_after_it(
    sampler: Any, data: dict[str, Any], cache: Cache, config: Callable[..., TrainConfig]
) -> None:
    made = [config(name=name, data=data, sampler=sampler) for name in ("a", "b")]
    after = plan(made).to_dict()["groups"][0]
    foreseen = plan(made, {cache.path: Unharvested(cache.layout, ("no dataset",))})
    before = foreseen.to_dict()["groups"][0]
    assert before.pop("notes") == [
        "the cache is not harvested yet: planned from the harvest's plan, so rows and steps are estimates",
        "no dataset",
    ]
    assert after.pop("notes") == []
    assert after.pop("download") is None, "only a cache that exists may lie in a bucket"
    assert "note  the cache is not harvested yet" in str(foreseen)
    counts = ("steps", "tokens", "epochs", "rows_per_epoch", "heldout_rows")
    for name in counts:  # the real split takes whole documents, of 5 to 60 rows each
        assert before.pop(name) == pytest.approx(after.pop(name), rel=0.1, abs=1)
    for one in (before, after):  # what is free changes from one moment to the next
        one["bytes"].pop("free")
    assert before == after
    if not data["heldout"] and sampler.kind == "uniform":
        assert foreseen.foreseen[0].stream.rows_per_epoch == cache.n_rows


def test_the_same_refusals(cache: Cache, config: Callable[..., TrainConfig]) -> None:
    coming = {cache.path: Unharvested(cache.layout)}
    with pytest.raises(UsageError, match="has no site 'layer_01.resid_mdi'; did you mean 'layer_01.resid_mid'"):
        plan([config(source="layer_01.resid_mdi")], coming)
    with pytest.raises(UsageError, match="fewer than train.min_steps"):
        plan([config(min_steps=10_000)], coming)
    elsewhere = config(cache=cache.path.parent / "none")
    with pytest.raises(DataError):
        plan([elsewhere], coming)


def test_a_packaged_preset_is_planned_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    preset, sets = ["gemma-2-2b-layer8"], ["harvest.device=cpu"]
    found = plan(train_configs(preset, sets, ()), unharvested(preset, sets)).to_dict()["groups"][0]
    assert (found["steps"], found["tokens"]) == (4883, 5_000_192)
    (run,) = found["runs"]
    parameters = 18_432 * (2 * 2304 + 1) + 2304
    assert run["parameters"] == parameters
    assert run["bytes"] == 4 * (4 * parameters + 1024 * (18_432 + 4 * 2304))
    assert found["heldout_rows"] == round(5_300_096 * resolve(preset, here=False).train.data.heldout)
    assert any("packaged facts of google/gemma-2-2b" in note for note in found["notes"])
    assert not list(tmp_path.iterdir())


def test_a_cache_of_another_name_is_not_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert unharvested([], ["train.cache=elsewhere"]) == {}


def test_the_precision_follows_the_device_and_is_kept(config: Callable[..., TrainConfig]) -> None:
    """auto: bfloat16 on CUDA, float32 on a CPU, frozen in the run's settings; a run that names one keeps it."""
    assert [with_precision(config(), device).precision for device in ("cpu", "cuda")] == ["float32", "bfloat16"]
    assert with_precision(config(precision="float32"), "cuda").precision == "float32"
    planned = plan([config(name="auto"), config(name="low", precision="bfloat16")])
    (group,) = planned.groups
    runs = open_runs([group], resume=False)
    frozen = [runs[one.path].config["precision"] for one in group.configs]
    assert frozen == ["float32", "bfloat16"]
    assert [run["precision"] for run in planned.to_dict()["groups"][0]["runs"]] == frozen
    lines = [line for line in str(planned).splitlines() if line.strip().startswith(("auto ", "low "))]
    assert [", selected in bfloat16" in line for line in lines] == [False, True]
    dtypes = [new_trainee(one, group.cache, 10, 100, group.device).coder.selection_dtype for one in group.configs]
    assert dtypes == [None, torch.bfloat16]


def test_a_sampler_that_would_exclude_nothing_is_refused(tmp_path: Path, config: Callable[..., TrainConfig]) -> None:
    """On a cache without BOS; one that excludes position 0 whatever it holds is not."""
    bare = make_cache(tmp_path / "bare", n_seq=160, config={"resolved": {"bos_token_id": None}})
    flagged = make_cache(tmp_path / "flagged", n_seq=160, config={"resolved": {"bos_token_id": 2}})
    by_token, by_place = ExcludeBosConfig(position_zero=False), ExcludeBosConfig()
    with pytest.raises(UsageError, match="exclude_bos would exclude nothing, since .* has no BOS") as caught:
        plan([config(cache=bare.path, sampler=by_token)])
    assert caught.value.hint == "--set train.sampler.position_zero=true   (or another sampler)"
    for cache, sampler in ((bare, by_place), (flagged, by_token), (flagged, by_place)):
        rows = plan([config(cache=cache.path, sampler=sampler, data={"heldout": 0.0})]).groups[0].stream.rows_per_epoch
        assert rows == 160 * 15
