"""Rows with an infinity or a NaN: reported at the first shard that has them and at the end, with a cure that works."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.shared.cache import open_cache
from sparse_pipeline.shared.config.settings import apply_set, to_dict, validate
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.errors import PipelineError
from sparse_pipeline.shared.overview.describe import describe, describe_text

EMBEDDED, RESIDUAL = "model.embed_tokens:out", "layer_00.mlp_out"


@pytest.fixture(scope="module")
def large(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The tiny model with one token whose embedding float16 cannot hold, and the id of that token."""
    path = tmp_path_factory.mktemp("models") / "large"
    shutil.copytree(tiny_model, path)
    token = int(AutoTokenizer.from_pretrained(path)(" 42", add_special_tokens=False)["input_ids"][-1])
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"][token, 5] = 1e6
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path, token


def settings(model: Path, texts: list[str], folder: Path, **changes: object) -> HarvestConfig:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    base = {"model": str(model), "dataset": str(file), "tokens": 32 * 64, "ctx": 16, "batch_tokens": 128}
    more = {"shard_rows": 128, "cache_dir": folder / "cache", "device": "cpu", "dtype": "float16", "sites": (EMBEDDED,)}
    return HarvestConfig(**{**base, **more, **changes})  # type: ignore[arg-type]


def test_a_few_rows_are_warned_of_twice(large: tuple[Path, int], tmp_path: Path) -> None:
    model, token = large
    texts = ["the quick function returns a list of values"] * 300
    texts[150] += " 42"
    said = io.StringIO()
    found = harvest(settings(model, texts, tmp_path), Console(quiet=True, stream=said))
    cache = open_cache(found.path)
    rows = torch.from_numpy(cache.tokens == token).flatten()
    assert rows.sum() == 1
    assert found.nonfinite_rows == {EMBEDDED: 1}
    assert cache.nonfinite_rows([EMBEDDED]).tolist() == rows.tolist()
    shard = int(rows.nonzero()) // 128
    first, last = said.getvalue().strip().splitlines()
    assert f"shard {shard}: 1 row of {EMBEDDED} (0.0078 of 128) hold an infinity or a NaN" in first
    assert f"finished, but 1 row of {EMBEDDED} (0.00049 of 2,048) hold" in last
    assert all("float16 ends at 65,504" in line and "--set harvest.dtype=bfloat16" in line for line in (first, last))
    assert "1 row with an infinity or a NaN\n" in describe_text(describe(found.path)) + "\n"


def test_many_rows_end_in_an_error_whose_cure_works(large: tuple[Path, int], tmp_path: Path) -> None:
    """Two sites; the NaN of attention spreads to all later rows of a sequence."""
    model, _ = large
    said = io.StringIO()
    made = settings(model, ["a list of 42 values"] * 300, tmp_path, sites=(EMBEDDED, RESIDUAL), name="here")
    with pytest.raises(PipelineError, match=rf"rows of {EMBEDDED} .*rows of {RESIDUAL} .* hold an infinity") as caught:
        harvest(made, Console(quiet=True, stream=said))
    assert len(said.getvalue().splitlines()) == 1
    cure = re.findall(r"--set (harvest\.\S+)", str(caught.value.hint))
    assert [one.partition("=")[0] for one in cure] == ["harvest.dtype", "harvest.name"]
    cured = validate(HarvestConfig, apply_set({"harvest": to_dict(made)}, cure)["harvest"])
    assert harvest(cured).nonfinite_rows == {}
