"""Harvest, train and analyze, from every kind of model that people have: tiny checkpoints on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_pipeline import pipeline
from tests.harvest.conftest import make_texts
from tests.models.test_nested import TEXT, save_nested
from tests.models.test_weights import plain, save_lora, write_gguf
from tests.models.tokenizers import save_word_tokenizer

__all__ = ["plain"]

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
WORDS = sorted({word for text in make_texts(100) for word in text.split()})


def gemma3(_plain: Path, path: Path) -> Path:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(3)
    Gemma3ForCausalLM(Gemma3TextConfig(**TEXT, sliding_window=4)).save_pretrained(path)
    save_word_tokenizer(path, [*WORDS, *(f"w{i}" for i in range(60))], bos="<bos>", eos="<eos>")
    return path


def gemma3_multimodal(_plain: Path, path: Path) -> Path:
    save_nested("gemma3", path)
    save_word_tokenizer(path, [*WORDS, *(f"w{i}" for i in range(60))], bos="<bos>", eos="<eos>")
    return path


def gguf(plain: Path, path: Path) -> Path:
    path.mkdir()
    write_gguf(plain, path / "tiny.Q8_0.gguf", "Q8_0")
    return path / "tiny.Q8_0.gguf"


def lora(plain: Path, path: Path) -> Path:
    save_lora(plain, path)
    return path


SETTINGS = """
harvest:
  {{model: {model}, dataset: {texts}, sites: [layer_01.resid_mid], tokens: 4096, ctx: 16, device: cpu, name: cache}}
train:
  coder: {{latents: 64, k: 4}}
  data: {{batch_size: 128, epochs: 1}}
  name: run
  source: layer_01.resid_mid
  target: layer_01.resid_mid
  variant: topk
  min_steps: 5
  device: cpu
analyze: {{name: report, reports: {{position: {{}}, global: {{}}}}}}
"""


@pytest.mark.parametrize("make", [gemma3, gemma3_multimodal, gguf, lora], ids=lambda make: make.__name__)
def test_harvest_train_and_analyze(
    make: Any, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(200)))
    model = make(plain, tmp_path / "model")
    (tmp_path / "pipeline.yaml").write_text(SETTINGS.format(model=model, texts=texts))
    for command in ("harvest", "train", "analyze"):
        assert pipeline.run([command, "--json"]) == 0, capsys.readouterr().err
        found = json.loads(capsys.readouterr().out)
        if command == "harvest":
            assert found["n_tokens"] == 4096
    assert list((tmp_path / "reports" / "report").glob("*.html"))
