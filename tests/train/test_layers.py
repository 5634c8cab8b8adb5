"""One template for many layers: the runs it stands for, their bits, their table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import sparse_pipeline
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError, UsageError
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.layers import by_layer, train_layers
from sparse_pipeline.train.loop import plan
from sparse_pipeline.train.loop import train as train_runs
from tests.synthetic import make_cache
from tests.train.conftest import TOPK

MakeConfig = Callable[..., TrainConfig]
SITES = ["layer_00.resid_mid", *(f"layer_{n:02d}.{kind}" for n in (1, 2, 12) for kind in ("resid_mid", "mlp_out"))]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_cache(tmp_path_factory.mktemp("caches") / "deep", n_seq=120, ctx=16, sites=dict.fromkeys(SITES, 16))


def test_the_template_stands_for_every_layer_with_both_sites(config: MakeConfig, deep: Cache) -> None:
    made = config(cache=deep.path, source="resid_mid", target="mlp_out", sites="all", name="all")
    runs = by_layer(made, deep.sites)
    assert [(run.source, run.target, run.run_name) for run in runs] == [
        (f"layer_{n:02d}.resid_mid", f"layer_{n:02d}.mlp_out", f"all-layer_{n:02d}") for n in (1, 2, 12)
    ]
    assert all(run.sites is None for run in runs)
    sae = by_layer(config(source="layer_07.resid_mid", target=None, sites=(12, 0)), deep.sites)
    assert [(run.source, run.target) for run in sae] == [("layer_12.resid_mid", None), ("layer_00.resid_mid", None)]
    assert by_layer(config(name="plain"), deep.sites) == [config(name="plain")]


def test_layers_that_are_not_there_are_refused_with_those_that_are(config: MakeConfig, deep: Cache) -> None:
    with pytest.raises(UsageError, match=r"layers 0, 5 lack resid_mid and mlp_out .*have: 1, 2, 12"):
        by_layer(config(sites=(0, 1, 5)), deep.sites)
    with pytest.raises(UsageError, match=r"no layer has attn_out"):
        by_layer(config(source="attn_out", target=None, sites="all"), deep.sites)
    with pytest.raises(UsageError, match="template"):
        plan([config(sites="all")])
    for wrong in ([], [1, 1]):
        with pytest.raises(ConfigError, match="sites"):
            validate(TrainConfig, {"sites": wrong}, "train")


def test_side_by_side_on_one_read_with_the_bits_of_runs_alone(config: MakeConfig, deep: Cache, tmp_path: Path) -> None:
    made = config(cache=deep.path, sites="all", name="all", data={"epochs": 1})
    runs = by_layer(made, deep.sites)
    assert len(plan(runs).groups) == 1
    found = train_layers(runs, "all")
    assert [row["layer"] for row in found.rows] == [1, 2, 12]
    assert [row["fvu"] for row in found.rows] == [open_run(run.path).summary["fvu"] for run in runs]
    alone = config(
        cache=deep.path, source="layer_02.resid_mid", target="layer_02.mlp_out", runs=tmp_path / "alone",
        data={"epochs": 1},
    )  # fmt: skip
    train_runs([alone])
    file = "final/coder.safetensors"
    assert (alone.path / file).read_bytes() == (runs[1].path / file).read_bytes()
    table, document = found.files
    assert "layer_12.resid_mid" in table.read_text(), "whole, however narrow the terminal is"
    assert json.loads(document.read_text())["layers"] == found.rows
    assert f"{found.rows[2]['fvu']:.4f}" in table.read_text()
    assert all(f"{row['fvu']:.4f}" in str(found) for row in found.rows)
    with pytest.raises(UsageError, match="already exists"):
        train_layers(runs, "all")
    assert train_layers(runs, "all", resume=True).rows == found.rows


def test_from_python(config: MakeConfig, deep: Cache, tmp_path: Path) -> None:
    summaries = sparse_pipeline.run_train(
        {
            "cache": str(deep.path),
            "runs": str(tmp_path / "python"),
            "sites": [1, 2],
            "coder": {"architecture": "topk", "latents": TOPK.latents, "k": TOPK.k},
            "data": {"batch_size": 64, "epochs": 1},
            "min_steps": 10,
        }
    )
    assert [summary.name for summary in summaries] == ["topk-layer_01", "topk-layer_02"]
