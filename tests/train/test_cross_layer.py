"""Runs of cross-layer coders: like a transcoder with one layer, resumed to the bit, started from single-layer runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sparse_pipeline as sp
from sparse_pipeline.analyze.config import AnalyzeConfig, default_report
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders.configs.batchtopk import BatchTopKConfig
from sparse_pipeline.shared.coders.configs.cross_layer import CrossLayerConfig
from sparse_pipeline.shared.config.settings import to_dict, validate
from sparse_pipeline.shared.errors import ConfigError, UsageError
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.loop import plan
from sparse_pipeline.train.loop import train as train_runs
from tests.synthetic import make_cache
from tests.train.conftest import TOPK, train_until_power_cut

MakeConfig = Callable[..., TrainConfig]
SOURCES, TARGETS = (tuple(f"layer_0{n}.{kind}" for n in (1, 2)) for kind in ("resid_mid", "mlp_out"))
FAST = {"optimizer": OptimizerConfig(lr=1e-2), "data": {"epochs": 2}}
CLT = CrossLayerConfig(latents=64, k=4)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_cache(tmp_path_factory.mktemp("caches") / "deep", 120, 16, sites=dict.fromkeys(SOURCES + TARGETS, 24))


@pytest.fixture
def make(config: MakeConfig, deep: Cache) -> MakeConfig:
    def made(**changes: object) -> TrainConfig:
        settings = {"cache": deep.path, "source": SOURCES, "target": TARGETS, "coder": CLT, "data": {"epochs": 1}}
        return config(**{**settings, **changes})

    return made


def test_one_layer_is_the_transcoder(make: MakeConfig) -> None:
    settings = {"source": SOURCES[0], "target": TARGETS[0]}
    alone = make(name="alone", coder=BatchTopKConfig(latents=64, k=4), **settings)
    one = make(name="one", coder=CLT, **settings)
    summaries = train_runs([alone, one])
    assert summaries[0].fvu == pytest.approx(summaries[1].fvu, rel=1e-5)
    ours, theirs = (sp.load_coder(run.path) for run in (one, alone))
    np.testing.assert_allclose(ours.w_dec.detach(), theirs.w_dec.detach(), rtol=1e-3, atol=1e-5)


def test_resumed_to_the_bit_and_analysed(make: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, cut = make(name="whole"), make(name="cut")
    assert validate(TrainConfig, to_dict(whole), "train") == whole
    (summary,) = train_runs([whole])
    train_until_power_cut([cut], 23, monkeypatch)
    train_runs([cut], resume=True)
    file = "final/coder.safetensors"
    assert (cut.path / file).read_bytes() == (whole.path / file).read_bytes()
    assert summary.by_site is not None
    assert list(summary.by_site) == list(TARGETS)
    reports = {name: default_report(name) for name in ("global", "crosscoder", "correlation")}
    result = analyze([whole.path], AnalyzeConfig(out=tmp_path, reports=reports, documents="heldout", name="report"))
    assert result.figures["whole"]["fvu"].value == pytest.approx(summary.fvu, rel=1e-5)
    sites = result.figures["whole"]["effective_sites"].value
    assert sites is not None
    assert 1 <= sites <= 2
    (entry,) = plan([make(name="planned")]).to_dict()["groups"][0]["runs"]
    assert entry["parameters"] == sum(p.numel() for p in sp.load_coder(whole.path).parameters())


def test_started_from_single_layer_runs(make: MakeConfig) -> None:
    single = [
        make(name=f"layer-{n}", source=source, target=target, coder=BatchTopKConfig(latents=40, k=4), **FAST)
        for n, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True))
    ]
    train_runs(single)
    starts = tuple(run.path for run in single)
    warm, full, cold = (
        make(name="warm", init=starts, **FAST),
        make(name="full", init=starts, coder=CrossLayerConfig(latents=80, k=4), **FAST),
        make(name="cold", **FAST),
    )
    summaries = {one.name: one for one in train_runs([warm, full, cold])}
    fvus = [one.fvu for one in train_runs(single, resume=True)]
    assert summaries["full"].fvu_untrained == pytest.approx(np.mean([f for f in fvus if f is not None]), rel=0.02)
    for name in ("warm", "full"):
        untrained, end = summaries[name].fvu_untrained, summaries[name].fvu
        assert untrained is not None
        assert end is not None
        assert summaries["cold"].fvu is not None
        assert summaries["cold"].fvu_untrained is not None
        assert untrained < summaries["cold"].fvu_untrained
        assert end < summaries["cold"].fvu
        assert summaries[name].moved is not None
    again = make(name="again", init=(warm.path,), **FAST)
    (summary,) = train_runs([again])
    assert summary.fvu_untrained == pytest.approx(summaries["warm"].fvu, rel=1e-6)
    with pytest.raises(UsageError, match="found 1 runs for 2 sites"):
        plan([make(name="short", init=starts[:1])])


def test_settings_that_do_not_fit_are_refused() -> None:
    sites = {"source": list(SOURCES), "target": list(TARGETS)}
    for wrong, message in (
        ({"coder": {"architecture": "cross-layer", "latents": 65}}, "cannot be shared out among 2 sites"),
        ({"coder": {"architecture": "cross-layer", "latents": 16, "k": 9}}, "each of the 2 sites has 8 latents"),
        ({"coder": {"architecture": "cross-layer"}, "freeze": ["w_dec"]}, "no frozen parameters"),
        ({"init": ["a", "b"]}, "several runs start a cross-layer coder"),
        ({"coder": {"architecture": "cross-layer"}, "reseed": {}}, "not cross-layer"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(TrainConfig, {**sites, **wrong}, "train")
    assert TOPK.k == 4
