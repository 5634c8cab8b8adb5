"""Each controller moves the figure that it controls toward its target, on a small cache where that figure is off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import Cache, Flag
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.loop import train
from sparse_pipeline.train.monitors.correlation import CorrelationConfig
from sparse_pipeline.train.monitors.position import PositionConfig
from sparse_pipeline.train.penalties.activation_correlation import ActivationCorrelationConfig
from sparse_pipeline.train.penalties.position_diversity import PositionDiversityConfig
from sparse_pipeline.train.penalties.weights import AdaptiveConfig
from sparse_pipeline.train.samplers.position_stratified import PositionStratifiedConfig
from tests.synthetic import DEFAULT_SITES, make_cache, sparse_acts, token_table

SITE, CTX = "layer_01.resid_mid", 16
MONITORS = {"position": PositionConfig(bins=4), "correlation": CorrelationConfig(min_fired=5, min_both=3)}


def cache_with(path: Path, bos: float) -> Cache:
    """4,800 rows, one in 16 at position 0: a constant vector with `bos` times the norm that it has by default."""
    table = token_table(300, CTX)
    acts = sparse_acts(table, {SITE: DEFAULT_SITES[SITE]})
    acts[SITE][torch.from_numpy((table.flags.reshape(-1) & int(Flag.BOS)) != 0)] *= bos
    return make_cache(path, 300, CTX, acts=acts, table=table)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Position 0 activates about 15 times as strongly as other rows."""
    return cache_with(tmp_path_factory.mktemp("loud") / "c", 1.0)


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Position 0 activates about three times as strongly as other rows."""
    return cache_with(tmp_path_factory.mktemp("soft") / "c", 0.2)


def lines(cache: Cache, runs: Path, name: str, **changes: Any) -> list[dict[str, Any]]:
    """metrics.jsonl of a run of 600 steps that is watched every 20 steps."""
    settings: dict[str, Any] = {
        "cache": cache.path, "source": SITE, "target": None, "runs": runs, "name": name, "monitors": MONITORS,
        "coder": TopKConfig(latents=96, k=4), "log_every": 1000, "checkpoint_every": 1000,
        "monitor_every": 20, "monitor_window": 20, "optimizer": OptimizerConfig(lr=3e-3),
        "data": DataConfig(batch_size=64, epochs=8, pool_rows=1024, heldout=0.0),
    }  # fmt: skip
    train([TrainConfig(**{**settings, **changes})])
    return [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def figure(found: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([line[name] for line in found if line.get(name) is not None])


@pytest.mark.slow
def test_the_adaptive_sampler_gives_position_0_its_share_of_the_activation(loud: Cache, tmp_path: Path) -> None:
    """The target is the corpus's own share of such rows, 1/16; uniform sampling leaves it at half of the activation."""
    sampler = PositionStratifiedConfig(adaptive=True, bos_factor=1.0, max_bos_share=0.5, ema=0.9)
    share = figure(lines(loud, tmp_path, "adaptive", sampler=sampler), "position/bos_activation")
    uniform = figure(lines(loud, tmp_path, "uniform"), "position/bos_activation")
    assert uniform.min() > 0.4
    assert share[0] > 0.3, "the first pool has no measurement yet"
    assert share[3:].mean() == pytest.approx(1 / 16, rel=0.3), "from the second pool on"


def test_the_sampler_reaches_another_ratio_and_draws_more_where_position_0_is_quiet(
    loud: Cache, tmp_path: Path
) -> None:
    sampler = PositionStratifiedConfig(adaptive=True, bos_factor=0.01, max_bos_share=0.5, ema=0.9, target_ratio=4)
    share = figure(lines(loud, tmp_path, "more", sampler=sampler), "position/bos_activation")
    assert share[0] < 0.2
    assert share[3:].mean() == pytest.approx(4 / 16, rel=0.3)


@pytest.mark.slow
def test_the_position_weight_moves_the_enrichment_to_its_target_and_settles(soft: Cache, tmp_path: Path) -> None:
    schedule = AdaptiveConfig(metric="position/bos_enrichment", target=2.5, rate=0.6, ema=0.5, max=1000)
    penalty = PositionDiversityConfig(bins=4, weight=0.01, schedule=schedule)
    found = lines(soft, tmp_path, "adaptive", penalties={"position_diversity": penalty})
    enrichment, weight = figure(found, "position/bos_enrichment"), figure(found, "position_diversity/weight")
    plain = figure(lines(soft, tmp_path, "plain"), "position/bos_enrichment")
    assert plain[-5:].min() > 3.2
    assert np.abs(enrichment[-5:] - 2.5).max() < 0.5 * (plain[-5:] - 2.5).min()
    assert weight.max() > 1, "it rose while the enrichment was above the target"
    assert weight[-1] < 0.5 * weight.max(), "and falls once it is below"


@pytest.mark.slow
def test_the_correlation_weight_lowers_the_largest_r(soft: Cache, tmp_path: Path) -> None:
    coder = TopKConfig(latents=192, k=8)
    schedule = AdaptiveConfig(metric="correlation/max_r", target=0.8, rate=30, ema=0.5, min=1, max=100_000)
    penalty = ActivationCorrelationConfig(weight=0.005, schedule=schedule)
    found = lines(soft, tmp_path, "adaptive", coder=coder, penalties={"activation_correlation": penalty})
    plain = lines(soft, tmp_path, "plain", coder=coder)
    assert figure(plain, "correlation/max_r")[-5:].min() > 0.85
    assert figure(found, "correlation/max_r")[-3:].mean() < figure(plain, "correlation/max_r")[-3:].mean() - 0.03
    assert figure(found, "correlation/pairs")[-3:].mean() < 0.5 * figure(plain, "correlation/pairs")[-3:].mean()
    assert figure(found, "activation_correlation/weight").max() > 1
