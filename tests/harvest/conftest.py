"""A tiny random Gemma-2 checkpoint with the demo's tokenizer, and a small text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

CTX = 16


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers of width 24 in bfloat16; random weights large enough for every module to matter."""
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    from sparse_pipeline.models.folder import DEMO_MODEL

    path = tmp_path_factory.mktemp("models") / "tiny-gemma2"
    torch.manual_seed(3)
    config = Gemma2Config(
        vocab_size=4096,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        query_pre_attn_scalar=12,
        max_position_embeddings=64,
        sliding_window=8,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = Gemma2ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.to(torch.bfloat16).save_pretrained(path)
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(path)
    return path


def make_texts(n: int, seed: int = 0) -> list[str]:
    """Texts of 0 to 60 words."""
    rng = random.Random(seed)
    words = [
        "the",
        "quick",
        "function",
        "returns",
        "a",
        "list",
        "of",
        "values",
        "from",
        "its",
        "argument",
        "while",
        "error",
        "class",
        "None",
        "42",
        "import",
    ]
    return [" ".join(rng.choices(words, k=rng.randrange(60))) for _ in range(n)]


@pytest.fixture(scope="session")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(200)), encoding="utf-8")
    return path
