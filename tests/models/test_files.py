"""Damaged checkpoints: each error names the file and what to do about it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.shared.console import size
from sparse_pipeline.shared.errors import PipelineError, UsageError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def settings(model: Path, texts: Path, folder: Path) -> HarvestConfig:
    return HarvestConfig(model=str(model), dataset=str(texts), ctx=16, device="cpu", cache_dir=folder / "cache")


def pointer(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(POINTER)


def cut(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-1000])


def cut_in_header(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:40])


def newer_tokenizer(path: Path) -> None:
    found = json.loads((path / "tokenizer.json").read_text())
    found["model"]["type"] = "Quantum"
    (path / "tokenizer.json").write_text(json.dumps(found))


def missing_shard(path: Path) -> None:
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message", "hint"),
    [
        (pointer("model.safetensors"), r"model\.safetensors is a Git LFS pointer", "lfs pull"),
        (pointer("tokenizer.json"), r"tokenizer\.json is a Git LFS pointer", "lfs pull"),
        (cut, r"model\.safetensors is cut off: found [0-9,]+ bytes, expected [0-9,]+", "download it again"),
        (cut_in_header, r"model\.safetensors is no safetensors file \(40 bytes\)", "download it again"),
        (lambda path: (path / "config.json").write_text('{"model_type": "gem'), r"config\.json is no JSON", "again"),
        (missing_shard, r"1 of 2 files of weights .* model-00002-of-00002\.safetensors", "download the model again"),
        (newer_tokenizer, r"tokenizers [0-9.]+ cannot read .*tokenizer\.json", "pip install --upgrade tokenizers"),
    ],
)
def test_a_damaged_file_is_named(
    damage: Callable[[Path], object], message: str, hint: str, tiny_model: Path, texts_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(tiny_model, path)
    damage(path)
    with pytest.raises(UsageError, match=message) as caught:
        plan(
            HarvestConfig(model=str(path), dataset=str(texts_file), ctx=16, device="cpu", cache_dir=tmp_path / "cache")
        )
    assert hint in str(caught.value.hint)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("bfloat16", 2)])
def test_memory_is_checked_before_anything_is_created(
    dtype: str, bytes_each: int, tiny_model: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with safe_open(tiny_model / "model.safetensors", "pt") as file:
        needed = bytes_each * sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=needed - 1))
    config = replace(settings(tiny_model, texts_file, tmp_path), dtype=dtype)
    with pytest.raises(PipelineError, match=f"needs {size(needed)} of host memory, {size(needed - 1)} are free"):
        harvest(config)
    assert not (tmp_path / "cache").exists()
