"""Every number that a named set-up promises, read from its resolved settings; and the same set-up at demo size."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from sparse_pipeline.resolve import resolve, train_configs
from sparse_pipeline.shared.codes.positions import position_bins
from sparse_pipeline.shared.config.settings import presets
from sparse_pipeline.shared.errors import ConfigError, UsageError
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.penalties.weights import AdaptiveConfig
from sparse_pipeline.train.schedules import cosine, linear

LAYER8, ANTIDUP = "gemma-2-2b-layer8", "gemma-2-2b-layer8-antidup"
CONTRASTIVE, PAIRS = "gemma-2-2b-layer19-self-contrastive", "gemma-2-2b-layer19-topk-pairs"
DEMOS = {LAYER8: "demo-layer8", ANTIDUP: "demo-antidup", CONTRASTIVE: "demo-self-contrastive", PAIRS: "demo-topk-pairs"}


def whole(preset: str) -> Any:
    return resolve([preset], here=False)


def training(preset: str) -> TrainConfig:
    config: TrainConfig = whole(preset).train
    return config


def steps(config: TrainConfig) -> int:
    assert config.data.tokens is not None
    return config.data.tokens // config.data.batch_size


def rates(config: TrainConfig) -> list[float]:
    total = steps(config)
    return [config.optimizer.rate(step, total, config.coder.latents) for step in range(1, total + 1)]


def only(settings: Any, **expected: Any) -> None:
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize("preset", DEMOS)
def test_what_all_of_them_share(preset: str) -> None:
    found = whole(preset)
    only(found.harvest, model="google/gemma-2-2b", dataset="HuggingFaceFW/fineweb-edu", packing="concat")
    config = found.train
    assert {config.source, config.target_site} == set(found.harvest.sites)
    assert found.harvest.tokens * (1 - config.data.heldout) > config.data.tokens >= 5_000_000, "one pass is enough"
    only(config.optimizer, lr=3e-4, betas=(0.9, 0.999))
    assert config.data.batch_size == 1024
    assert config.coder.decoder_norm == "unit"


def test_layer8() -> None:
    config = training(LAYER8)
    only(config.coder, architecture="matryoshka", latents=8 * 2304, groups=(2304, 4608, 9216, 2304), k=48)
    only(config, source="layer_08.resid_mid", target="layer_08.mlp_out", log_every=100, keep_checkpoints=None)
    assert steps(config) == 4883
    assert math.ceil(4883 / config.checkpoint_every) == 10
    rate = rates(config)
    np.testing.assert_allclose(rate[:200], 3e-4 * np.arange(1, 201) / 200, rtol=1e-12)  # 0 before the first
    assert rate[199] == max(rate) == 3e-4
    progress = np.arange(4684) / 4683
    expected = 3e-6 + (3e-4 - 3e-6) * (1 + np.cos(np.pi * progress)) / 2
    np.testing.assert_allclose(rate[199:], expected, rtol=1e-12)
    assert rate[-1] == pytest.approx(3e-6, rel=1e-9)


def test_antidup() -> None:
    found = whole(ANTIDUP)
    config = found.train
    assert found.harvest.ctx == 64
    only(config.coder, architecture="matryoshka", latents=4608, groups=(1152, 2304, 1152))
    only(config, source="layer_08.resid_mid", target="layer_08.mlp_out", checkpoint_every=500)
    assert config.data.tokens == 5_000_000
    only(config.optimizer, warmup_steps=200, decay="cosine", decay_steps=4800)
    weights = {name: penalty.weight for name, penalty in config.penalties.items()}
    assert weights == {"decoder_orthogonality": 0.01, "activation_correlation": 0.005, "position_diversity": 0.01}
    assert all(isinstance(penalty.schedule, AdaptiveConfig) for penalty in config.penalties.values())
    only(config.sampler, kind="position_stratified", bos_factor=0.3, max_bos_share=0.2, bins=10)
    only(config.sampler, balanced=True, adaptive=True, target_ratio=1.0)
    followed = {name: (penalty.schedule.metric, penalty.schedule.target) for name, penalty in config.penalties.items()}
    assert followed == {
        "decoder_orthogonality": ("correlation/max_r", 0.8),
        "activation_correlation": ("correlation/max_r", 0.8),
        "position_diversity": ("position/bos_enrichment", 1),
    }
    bins = np.bincount(position_bins(np.arange(64), 64, 10))
    drawn = (bins[1:].min() * 10 + bins[0] * config.sampler.min_factor) / 64
    assert found.harvest.tokens * (1 - config.data.heldout) * drawn > 5_000_000, "one pass is enough"
    only(config.wandb, mode="offline", project=ANTIDUP)
    assert config.monitors.keys() == {"correlation", "position", "utilisation"}
    assert config.monitors["correlation"].threshold == 0.8
    only(config, monitor_every=100, monitor_window=50)
    rate = rates(config)
    assert (rate[199], rate.index(max(rate))) == (3e-4, 199)
    # The run ends 118 steps before its cosine of 4,800 does.
    assert rate[-1] == pytest.approx(3e-6 + 2.97e-4 * (1 + math.cos(math.pi * 4682 / 4800)) / 2, rel=1e-12)


def test_the_preset_and_the_variant_antidup_say_the_same() -> None:
    preset, variant = training(ANTIDUP), resolve(variant="antidup", here=False).train
    for name in ("penalties", "sampler", "monitors", "monitor_every", "monitor_window"):
        assert getattr(preset, name) == getattr(variant, name), name
    assert preset.coder.architecture == variant.coder.architecture


def test_the_preset_antidup_without_its_penalties_is_the_run_before() -> None:
    before = resolve([ANTIDUP], ["train.penalties=null"], here=False).train
    assert before == dataclasses.replace(training(ANTIDUP), penalties={})


def test_self_contrastive() -> None:
    config = training(CONTRASTIVE)
    assert config.source.startswith("layer_19.")
    assert config.target is None
    only(config.coder, architecture="relu", latents=2304, l1_coef=0.04)
    penalty = config.penalties["self_contrastive"]
    only(penalty, projection=128, rescore=True, contrastive_warmup=1000)
    total = steps(config)
    threshold = [
        cosine(penalty.threshold_start, penalty.threshold_end, step / total) for step in (0, total // 2, total)
    ]
    assert threshold == pytest.approx([0.3, 0.175, 0.05])
    weight = [
        linear(0.0, penalty.contrastive_weight, step / penalty.contrastive_warmup) for step in (0, 500, 1000, total)
    ]
    assert weight == pytest.approx([0.0, 0.15, 0.3, 0.3])


def test_topk_pairs() -> None:
    config = training(PAIRS)
    penalty = config.penalties["topk_pairs"]
    only(penalty, weight=0.1, share=0.001, threshold=0.1, on="activation")
    assert [penalty.n_pairs(n) for n in (2304, 4608, 18_432)] == [2653, 10_614, 169_860]
    only(config.coder, architecture="relu", latents=2304, l1_coef=0.04, decoder_norm="unit")
    assert config.log_every == 1
    assert whole(PAIRS).harvest == whole(CONTRASTIVE).harvest, "the two share a cache"


@pytest.mark.parametrize(("preset", "demo"), DEMOS.items())
def test_the_demo_size_differs_in_size_only(preset: str, demo: str) -> None:
    large, small = training(preset), training(demo)
    assert resolve([demo], here=False).harvest == resolve([], here=False).harvest, "the demo cache"
    assert large.coder.latents == 18 * small.coder.latents, "as the widths are to one another, 2304 to 128"
    if "groups" in large.coder.__dataclass_fields__:
        assert large.coder.groups == tuple(18 * size for size in small.coder.groups)  # type: ignore[attr-defined]
    for name in ("weight", "schedule", "kind"):
        assert {k: getattr(p, name) for k, p in large.penalties.items()} == {
            k: getattr(p, name) for k, p in small.penalties.items()
        }
    same = ("sampler", "monitors", "log_every", "checkpoint_every")
    watched = large.monitor_every // (5 if small.monitors else 1)  # a run of a tenth of the steps is watched more often
    assert small.monitor_every == watched
    for name in same:
        assert getattr(large, name) == getattr(small, name), name
    assert large.coder.architecture == small.coder.architecture
    assert dataclasses.replace(small.optimizer, warmup_steps=0, decay_steps=None) == dataclasses.replace(
        large.optimizer, warmup_steps=0, decay_steps=None
    )


SAE, TRANSCODER = "gemma-3-270m-layer9", "gemma-3-270m-layer9-transcoder"


@pytest.mark.parametrize(("preset", "target"), [(SAE, "layer_09.resid_mid"), (TRANSCODER, "layer_09.mlp_out")])
def test_gemma3_uses_what_works_on_it(preset: str, target: str) -> None:
    found = whole(preset)
    config = found.train
    only(found.harvest, model="google/gemma-3-270m", ctx=128, sites=("layer_09.resid_mid", "layer_09.mlp_out"))
    assert found.harvest == whole(SAE).harvest, "the two share a cache"
    only(config, source="layer_09.resid_mid", target_site=target)
    only(config.coder, architecture="topk", latents=4096, k=32, normalise="per_dimension")
    only(config.sampler, kind="uniform", massive="clip")
    recommended = resolve(variant="topk-reseed", here=False).train
    assert config.reseed is not None
    assert (config.penalties, config.reseed) == (recommended.penalties, recommended.reseed)
    assert config.data.batch_size == 1024
    assert int(found.harvest.tokens * (1 - config.data.heldout) * config.data.epochs) // 1024 == 979


def test_no_two_presets_share_the_name_of_their_run() -> None:
    named = {name: training(name) for name in presets() if name != "demo"}
    assert {config.run_name for config in named.values()} == named.keys()
    for name, config in named.items():
        if name.startswith("gemma-2"):
            assert config.wandb.project == name
        if name.startswith("gemma-3-270m-layer9"):
            assert config.wandb.project == SAE


def test_a_variant_of_a_preset_is_not_the_run_of_the_preset() -> None:
    def names(variants: list[str], sets: list[str] | None = None, name: str | None = None) -> list[str]:
        return [config.run_name for config in train_configs([LAYER8], sets or [], variants, name, here=False)]

    assert names([]) == [LAYER8]
    assert names(["topk"]) == [f"{LAYER8}-topk"]
    assert names(["topk", "relu"]) == [f"{LAYER8}-topk", f"{LAYER8}-relu"]
    assert names(["topk"], ["train.name=mine"]) == ["mine"]
    assert names(["topk", "relu"], ["train.name=mine"]) == ["mine-topk", "mine-relu"]
    assert names(["topk"], name="mine") == ["mine"]
    assert [config.run_name for config in train_configs([], [], ["topk"], here=False)] == ["topk"]


def test_seeds_train_side_by_side() -> None:
    def names(sets: list[str], variants: list[str], seeds: int | None = None) -> dict[str, int]:
        return {one.run_name: one.seed for one in train_configs([], sets, variants, seeds=seeds, here=False)}

    assert names(["train.seed=[0, 5]"], ["topk"]) == {"topk-seed0": 0, "topk-seed5": 5}
    assert names(["train.seed=3"], ["topk", "relu"], 2) == {
        "topk-seed3": 3, "topk-seed4": 4, "relu-seed3": 3, "relu-seed4": 4,
    }  # fmt: skip
    assert names(["train.seed=[7]"], ["topk"]) == {"topk": 7}
    for wrong in ("[]", "[1, 1]", "[a]", "[true]"):
        with pytest.raises(ConfigError, match="train.seed: expected a seed, or a list"):
            names([f"train.seed={wrong}"], ["topk"])
    with pytest.raises(UsageError, match="lists its seeds already"):
        names(["train.seed=[0, 1]"], ["topk"], 2)
    with pytest.raises(UsageError, match="--name: expected only letters.*try 'a-b'"):
        train_configs([], [], ["topk"], "a/b", here=False)


def test_a_decay_that_is_over_stays_where_it_ended() -> None:
    optimizer = OptimizerConfig(lr=1.0, warmup_steps=10, decay_steps=20, lr_final_fraction=0.1)
    found = [optimizer.rate(step, 100, 64) for step in (5, 10, 20, 30, 31, 100)]
    assert found == pytest.approx([0.5, 1.0, 0.55, 0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match="a constant rate has no decay"):
        OptimizerConfig(decay="constant", decay_steps=20)
