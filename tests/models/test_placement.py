"""Models that accelerate spreads over memory and disk, and quantised checkpoints."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.models.checkpoint import find_checkpoint
from sparse_pipeline.shared.cache import open_cache
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError, UsageError
from tests.harvest.conftest import CTX
from tests.harvest.test_run import config_for, contents

SITES = ("layer_00.resid_mid", "layer_01.mlp_out", "model.embed_tokens:out")


def settings(model: Path, texts: Path, folder: Path, **changes: Any) -> HarvestConfig:
    return config_for(model, texts, folder, sites=SITES, tokens=16 * CTX, dtype="float32", **changes)


@pytest.mark.parametrize(
    "device_map",
    [
        "auto",
        {"": "cpu"},
        {"": "disk"},
        {
            "model.embed_tokens": "cpu",
            "model.layers.0": "disk",
            "model.layers.1": "cpu",
            "model.layers.2": "disk",
            "model.norm": "cpu",
            "model.rotary_emb": "cpu",
            "lm_head": "cpu",
        },
    ],
)
def test_a_spread_model_gives_the_same_bits(
    device_map: Any, tiny_model: Path, texts_file: Path, tmp_path: Path
) -> None:
    """bfloat16 weights in float32: those on the disk are converted first."""
    plain = harvest(settings(tiny_model, texts_file, tmp_path / "plain", name="same"))
    spread = settings(tiny_model, texts_file, tmp_path / "spread", name="same", device_map=device_map)
    assert any("accelerate places the weights" in note for note in plan(spread).notes)
    assert contents(harvest(spread).path) == contents(plain.path)


def test_limits_and_mistakes(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    limited = settings(tiny_model, texts_file, tmp_path, device_map="auto", max_memory={"cpu": "200KB"})
    found = find_checkpoint(limited)
    assert (found.device_map, found.max_memory, found.whole) == ("auto", {"cpu": "200KB"}, False)
    assert harvest(limited).n_sequences == 16
    with pytest.raises(UsageError, match=r"no device for \d+ of \d+ weights, such as model.embed_tokens"):
        harvest(settings(tiny_model, texts_file, tmp_path / "none", device_map={"model.layers.0": "cpu"}))
    for wrong, message in (
        ({"device_map": "everywhere"}, "device_map"),
        ({"max_memory": {"cpu": "1GiB"}}, "max_memory: requires device_map"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "max_memory: expected such as"),
        ({"device_map": "auto", "compile": "on"}, "is not compiled"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(HarvestConfig, wrong)
    assert validate(HarvestConfig, {"device_map": {"": 0}}).device_map == {"": 0}


def _quantised(model: Path, path: Path, config: dict[str, Any]) -> Path:
    shutil.copytree(model, path)
    found = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**found, "quantization_config": config}))
    return path


def test_an_fp8_checkpoint_is_dequantised_without_a_gpu(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    """Held against the plain checkpoint of the same numbers: FP8 codes times the scale of each block."""
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    path = _quantised(tiny_model, tmp_path / "fp8", config)
    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    stored: dict[str, Tensor] = {}
    same: dict[str, Tensor] = {}
    for name, value in load_file(tiny_model / "model.safetensors").items():
        stored[name] = same[name] = value
        if "layers" in name and value.ndim == 2:
            scale = value.float().abs().max() / 448
            stored[name] = (value.float() / scale).to(torch.float8_e4m3fn)
            stored[name.replace(".weight", ".weight_scale_inv")] = scale.reshape(1, 1)
            same[name] = (stored[name].float() * scale).to(torch.bfloat16)
    save_file(stored, path / "model.safetensors", {"format": "pt"})
    save_file(same, plain / "model.safetensors", {"format": "pt"})
    found, expected = (
        open_cache(harvest(settings(model, texts_file, tmp_path / model.name, storage="float32")).path)
        for model in (path, plain)
    )
    whole = open_cache(harvest(settings(tiny_model, texts_file, tmp_path / "whole", storage="float32")).path)
    a, b, c = (cache.rows(SITES[1], np.arange(cache.n_rows)) for cache in (found, expected, whole))
    assert (a - b).norm() < 0.01 * b.norm() < 0.5 * (a - c).norm()  # eight bits are 3 % off, their rounding far less
    assert found.config["resolved"]["quantisation"] == config
    assert "quantisation" not in expected.config["resolved"]


@pytest.mark.parametrize(
    ("config", "message", "cure"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by bitsandbytes", "pip install"),
        ({"quant_method": "gptq", "bits": 4}, "quantised by gptq", "pip install optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "quantised by awq", "pip install gptqmodel"),
        ({"quant_method": "vptq"}, "quantised by vptq", "pip install"),
        ({"quant_method": "eetq"}, "quantised by eetq", "pip install kernels"),
        ({"quant_method": "spqr", "bits": 3, "beta1": 16, "beta2": 16, "shapes": {"a.weight": 1}}, "GPU", "with one"),
        ({"quant_method": "brand-new"}, "quantised by brand-new", "unquantised checkpoint"),
    ],
)  # fmt: skip
def test_what_needs_a_package_or_a_gpu_is_refused_by_name(
    config: dict[str, Any], message: str, cure: str, tiny_model: Path, texts_file: Path, tmp_path: Path
) -> None:
    path = _quantised(tiny_model, tmp_path / "model", config)
    for command in (plan, harvest):
        with pytest.raises(UsageError, match=message) as caught:
            command(settings(path, texts_file, tmp_path / "cache"))
        assert cure in str(caught.value.hint)
    assert not (tmp_path / "cache").exists()


def test_device_maps_of_weights_that_are_made(tiny_model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(tiny_model, adapter)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    with pytest.raises(UsageError, match="is an adapter, whose weights are made in host memory"):
        find_checkpoint(dataclasses.replace(HarvestConfig(model=str(adapter), ctx=16), device_map="auto"))
