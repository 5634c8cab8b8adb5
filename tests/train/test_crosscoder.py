"""Crosscoders: one dictionary over several sites of a cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import sparse_pipeline as sp
from sparse_pipeline.analyze.config import AnalyzeConfig, default_report
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.exchange.export import Wanted, export
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.cache.heldout import split_rows
from sparse_pipeline.shared.cache.rows import rest_rows
from sparse_pipeline.shared.coders.configs.batchtopk import BatchTopKConfig
from sparse_pipeline.shared.coders.configs.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.configs.topk import TopKConfig
from sparse_pipeline.shared.config.settings import to_dict, validate
from sparse_pipeline.shared.errors import ConfigError, UsageError
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.loop import RunSummary, plan
from sparse_pipeline.train.loop import train as train_runs
from tests.synthetic import make_cache, sparse_acts, token_table
from tests.train.conftest import train_until_power_cut

MakeConfig = Callable[..., TrainConfig]
SITES = {"layer_01.resid_mid": 24, "layer_02.resid_mid": 32}
JOINT = "layer_01.resid_mid+layer_02.resid_mid"
BATCH = BatchTopKConfig(latents=64, k=4)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Two sites of different width; the second is ten times as large, as a later layer is."""
    table = token_table(120, 16)
    acts = sparse_acts(table, SITES)
    acts["layer_02.resid_mid"] = acts["layer_02.resid_mid"] * 10
    return make_cache(tmp_path_factory.mktemp("caches") / "deep", 120, 16, acts=acts, table=table)


@pytest.fixture(scope="module")
def trained(deep: Cache, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, RunSummary]:
    """A crosscoder of both sites, and what training says of it."""
    run = TrainConfig(
        cache=deep.path, source=tuple(SITES), target=None, coder=BATCH, runs=tmp_path_factory.mktemp("runs"),
        name="cross", min_steps=10, data=DataConfig(batch_size=64, epochs=4), optimizer=OptimizerConfig(lr=4e-3),
    )  # fmt: skip
    return run, train_runs([run])[0]


@pytest.fixture
def cross(config: MakeConfig, deep: Cache) -> MakeConfig:
    def make(**changes: object) -> TrainConfig:
        return config(**{"cache": deep.path, "source": tuple(SITES), "target": None, "coder": BATCH, **changes})

    return make


def test_a_list_of_sites_is_one_joint_site(cross: MakeConfig) -> None:
    made = cross()
    assert made.source == made.target_site == JOINT
    assert validate(TrainConfig, to_dict(made), "train") == made
    assert cross(source=["blocks.1.hook_resid_mid", "layer_02.resid_mid"]).source == JOINT
    assert validate(TrainConfig, {"source": [*SITES], "target": None}, "train").source == JOINT
    for wrong, message in (
        ({"source": [*SITES], "target": "layer_02.mlp_out"}, "1 site for 2 of the source"),
        ({"source": ["layer_01.resid_mid"] * 2, "target": None}, "different ones"),
        ({"source": [], "target": None}, "expected one site or a list"),
        ({"source": [*SITES], "target": None, "sites": "all"}, "several sites names them in source"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(TrainConfig, wrong, "train")
    with pytest.raises(UsageError, match=r"no site 'layer_03.resid_mid'"):
        plan([cross(source=("layer_01.resid_mid", "layer_03.resid_mid"))])


def test_one_site_in_a_list_is_the_sae(cross: MakeConfig, tmp_path: Path) -> None:
    site = "layer_02.resid_mid"
    settings = {"target": None, "data": {"epochs": 1}}
    alone, listed = (
        cross(source=source, name=name, **settings) for source, name in ((site, "alone"), ((site,), "listed"))
    )
    train_runs([alone, listed])
    file = "final/coder.safetensors"
    assert (alone.path / file).read_bytes() == (listed.path / file).read_bytes()


def test_figures_of_each_site_and_of_both_follow_from_the_coder(
    trained: tuple[TrainConfig, RunSummary], deep: Cache
) -> None:
    run, summary = trained
    coder = sp.load_coder(run.path)
    rows = np.flatnonzero(split_rows(deep, run.data.heldout).heldout & rest_rows(deep.flags, deep.ctx).reshape(-1))
    x = deep.rows(JOINT, rows)
    assert torch.equal(x, torch.cat([deep.rows(site, rows) for site in SITES], dim=1))
    with torch.no_grad():
        error = (x.double() - coder.decode(coder.encode(x)).double()).square().numpy().sum(axis=0)
    ratios, variances, start = [], [], 0
    assert summary.by_site is not None
    for site, width in SITES.items():
        stats = deep.stats(site).rest
        variance = (deep.rows(site, rows).double().numpy() - stats.mean) ** 2
        mine = error[start : start + width]
        assert summary.by_site[site]["fvu"] == pytest.approx(mine.sum() / variance.sum(), rel=1e-5)
        assert summary.by_site[site]["fvu_dims"] == pytest.approx((mine / variance.sum(axis=0)).mean(), rel=1e-5)
        ratios.append(mine.sum() / stats.var.mean())
        variances.append(variance.sum() / stats.var.mean())
        start += width
    assert summary.fvu == pytest.approx(sum(ratios) / sum(variances), rel=1e-5)
    assert summary.fvu_untrained is not None
    assert summary.fvu is not None
    assert summary.fvu < 0.6 * summary.fvu_untrained
    shown = {line.split()[0]: line.split()[1] for line in str(summary).splitlines() if "layer_" in line[:8]}
    assert shown == {site: f"{figures['fvu']:.4f}" for site, figures in summary.by_site.items()}
    assert coder.kind == "crosscoder"
    assert (coder.source, coder.source_widths) == (JOINT, (24, 32))


@pytest.mark.parametrize("coder", [BATCH, MatryoshkaConfig(latents=64, k=4, prefixes="random", n_prefixes=3)])
def test_resumed_like_any_run(cross: MakeConfig, monkeypatch: pytest.MonkeyPatch, coder: TopKConfig) -> None:
    whole, cut = (
        cross(name="whole", coder=coder, data={"epochs": 1}),
        cross(name="cut", coder=coder, data={"epochs": 1}),
    )
    train_runs([whole])
    train_until_power_cut([cut], 23, monkeypatch)
    train_runs([cut], resume=True)
    file = "final/coder.safetensors"
    assert (cut.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_the_report_of_a_crosscoder(trained: tuple[TrainConfig, RunSummary], tmp_path: Path) -> None:
    run, summary = trained
    names = ("global", "correlation", "top_activations", "position", "cross_entropy", "crosscoder")
    reports = {name: default_report(name) for name in names}
    result = analyze([run.path], AnalyzeConfig(out=tmp_path, reports=reports, documents="heldout"))
    document = json.loads((result.report.parent / "report.json").read_text())
    (found,) = [one for one in document["runs"] if one["name"] == "cross"]
    assert set(found["reports"]) == {*names} - {"cross_entropy"}
    assert summary.by_site is not None
    by_site = found["reports"]["global"]["data"]["by_site"]
    for site, figures in summary.by_site.items():
        for key in ("fvu", "fvu_dims"):
            assert by_site[site][key] == pytest.approx(figures[key], rel=1e-5)
    assert found["summary"]["fvu"] == pytest.approx(summary.fvu, rel=1e-5)
    assert found["reports"]["global"]["data"]["kind"] == "crosscoder"
    norms = sp.load_coder(run.path).w_dec.detach()
    lengths = torch.stack([norms[:, :24].norm(dim=1), norms[:, 24:].norm(dim=1)], dim=1).numpy()
    disk = pq.read_table(result.report.parent / "cross" / "sites.parquet").to_pydict()
    np.testing.assert_allclose(disk["norm layer_02.resid_mid"], lengths[:, 1], rtol=1e-5)
    relative = 0.5 * (1 + (lengths[:, 1] - lengths[:, 0]) / lengths.max(axis=1))
    np.testing.assert_allclose(disk["relative_norm"], relative, rtol=1e-5)
    assert "nu_error" not in disk
    with pytest.raises(UsageError, match="one site of the model is replaced"):
        only = {"cross_entropy": default_report("cross_entropy")}
        analyze([run.path], AnalyzeConfig(out=tmp_path, reports=only, name="ce"))
    with pytest.raises(UsageError, match="needs a coder of one site; this crosscoder reads layer_01"):
        export([run.path], Wanted(to="safetensors", out=tmp_path / "out"))
    with pytest.raises(UsageError, match="reading a text needs a coder of one site"):
        sp.top_latents(run.path, None, "text")
    assert open_run(run.path).final["source_widths"] == [24, 32]
