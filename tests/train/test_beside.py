"""A coder over the caches of two models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sparse_pipeline as sp
from sparse_pipeline.analyze.config import AnalyzeConfig, default_report
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.cache import Cache, open_cache
from sparse_pipeline.shared.cache.beside import open_beside
from sparse_pipeline.shared.config.settings import to_dict, validate
from sparse_pipeline.shared.errors import ConfigError, DataError
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.loop import plan
from sparse_pipeline.train.loop import train as train_runs
from tests.synthetic import make_cache, sparse_acts, token_table
from tests.train.conftest import TOPK, train_until_power_cut

MakeConfig = Callable[..., TrainConfig]
SITE = "layer_01.resid_mid"
JOINT = f"{SITE}+{SITE}@2"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, Cache]:
    """The same tokens; the second model's activations are others, and quantised."""
    folder, table = tmp_path_factory.mktemp("caches"), token_table(120, 16)
    base = make_cache(folder / "base", 120, 16, sites={SITE: 24}, table=table)
    acts = sparse_acts(table, {SITE: 24}, seed=5)
    tuned = make_cache(folder / "tuned", 120, 16, acts=acts, table=table, quantised={SITE: "int8"})
    return base, tuned


def test_rows_and_statistics_are_those_of_each_cache(pair: tuple[Cache, Cache]) -> None:
    base, tuned = pair
    both = open_beside(base, [tuned])
    rows = [5, 700, 3]
    assert torch.equal(both.rows(JOINT, rows), torch.cat([one.rows(SITE, rows) for one in pair], dim=1))
    assert torch.equal(both.chunk(f"{SITE}@2", 1), tuned.chunk(SITE, 1))
    assert (both.stats(f"{SITE}@2").rest.mean == tuned.stats(SITE).rest.mean).all()
    assert both.stats(JOINT).rest.mean[24:] == pytest.approx(tuned.stats(SITE).rest.mean)
    assert [one["identity"] for one in both.record["beside"]] == [tuned.identity]
    assert open_beside(base, []) is base


def test_other_tokens_or_shapes_are_refused_by_name(pair: tuple[Cache, Cache], tmp_path: Path) -> None:
    base, _ = pair
    other = make_cache(tmp_path / "other", 120, 16, sites={SITE: 24}, seed=9)
    with pytest.raises(DataError, match=rf"{other.path} does not hold the tokens of {base.path}: \w+ of row "):
        open_beside(base, [other])
    longer = make_cache(tmp_path / "longer", 128, 16, sites={SITE: 24})
    with pytest.raises(DataError, match="has n_seq 128, but"):
        open_beside(base, [longer])


def test_settings(config: MakeConfig, pair: tuple[Cache, Cache]) -> None:
    base, tuned = pair
    made = config(cache=base.path, beside=(tuned.path,), source=SITE, target=None)
    assert made.source == JOINT
    assert validate(TrainConfig, to_dict(made), "train") == made
    two = config(beside=(tuned.path,), source=(SITE, "layer_02.resid_mid"), target=None)
    assert two.source == f"{JOINT}+layer_02.resid_mid+layer_02.resid_mid@2"
    with pytest.raises(ConfigError, match=r"names cache 2, but train.beside names 0"):
        validate(TrainConfig, {"source": JOINT, "target": None}, "train")


def test_trained_resumed_moved_and_analysed(
    config: MakeConfig, pair: tuple[Cache, Cache], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for one in pair:
        shutil.copytree(one.path, tmp_path / "cache" / one.path.name)
    base, tuned = (tmp_path / "cache" / one.path.name for one in pair)
    settings = {"cache": base, "beside": (tuned,), "source": SITE, "target": None, "data": {"epochs": 1}}
    whole, cut = (config(name=name, coder=TOPK, **settings) for name in ("whole", "cut"))
    train_runs([whole])
    train_until_power_cut([cut], 23, monkeypatch)
    with pytest.raises(DataError, match="these settings name no such cache"):
        alone = {**settings, "beside": ()}
        plan([config(name="cut", coder=TOPK, **alone | {"source": SITE})])
        train_runs([config(name="cut", coder=TOPK, **alone)], resume=True)
    train_runs([cut], resume=True)
    file = "final/coder.safetensors"
    assert (cut.path / file).read_bytes() == (whole.path / file).read_bytes()

    tuned.rename(tmp_path / "cache" / "renamed")
    config_of_report = AnalyzeConfig(out=tmp_path, reports={"crosscoder": default_report("crosscoder")}, name="report")
    result = analyze([whole.path], config_of_report)
    assert result.figures["whole"]["shared_latents"].value is not None
    both = open_beside(open_cache(base), [open_cache(tmp_path / "cache" / "renamed")])
    codes = sp.load_coder(open_run(whole.path).path).encode(both.rows(JOINT, range(64)))
    assert int(codes.l0().max()) == TOPK.k
