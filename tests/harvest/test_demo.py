"""The embedded default: the corpus that every Python carries, and the model that was trained on it."""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_pipeline.harvest.demo.corpus import documents, group_of
from sparse_pipeline.harvest.demo.train_demo_model import BOS, CTX, EOS, MODEL_DIR, VOCAB, is_held_out, mean_loss, pack

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def corpus() -> list:
    return list(documents())


def digest_of(corpus: list) -> str:
    return hashlib.sha256(repr(corpus).encode()).hexdigest()


def test_corpus_is_large_enough(corpus: list) -> None:
    assert len({document.source for document in corpus}) == len(corpus)
    assert sum(len(document.text) for document in corpus) > 1_500_000
    assert all(len(document.text.strip()) >= 100 for document in corpus)
    kinds = {document.domain for document in corpus}
    assert {"help", "network", "development", "data", "concurrency", "files", "language", "text"} <= kinds


def test_corpus_holds_what_it_says(corpus: list) -> None:
    import json.decoder

    by_source = {document.source: document.text for document in corpus}
    assert json.decoder.JSONDecoder.__doc__ is not None
    first_line = json.decoder.JSONDecoder.__doc__.strip().splitlines()[0]
    assert first_line in by_source["doc:json.decoder#JSONDecoder"]
    assert "lambda" in by_source["help:lambda"].lower()


def test_another_process_has_the_same_corpus_and_imports_no_module_for_it(corpus: list) -> None:
    code = (
        "import sys; from sparse_pipeline.harvest.demo.corpus import documents; before = set(sys.modules); "
        "found = list(documents()); new = set(sys.modules) - before; "
        "assert not new & {'antigravity', 'this', 'turtle', 'tkinter', 'torch'}, new; "
        "import hashlib; print(hashlib.sha256(repr(found).encode()).hexdigest())"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7"},  # no order of the corpus comes from a set
        capture_output=True,
        text=True,
    )
    assert child.stdout.strip() == digest_of(corpus)


def test_a_split_never_cuts_a_module(corpus: list) -> None:
    assert 0.01 < sum(map(is_held_out, corpus)) / len(corpus) < 0.15
    held = {group_of(document) for document in corpus if is_held_out(document)}
    trained = {group_of(document) for document in corpus if not is_held_out(document)}
    assert not held & trained


def test_shipped_files_are_small_and_complete() -> None:
    names = {path.name for path in MODEL_DIR.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 8_000_000


def test_tokenizer_puts_bos_first_and_loses_no_text() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    text = "  def f(x: int) -> str:\n\treturn 'ünï'  # 漢字 🙂\n"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == BOS == tokenizer.bos_token_id
    assert tokenizer.eos_token_id == EOS
    assert tokenizer.decode(ids[1:]) == text
    assert len(tokenizer) == VOCAB


def test_the_model_has_learned_something(corpus: list) -> None:
    """The shipped checkpoint, on modules and topics it was not trained on: at least 2 nats below a uniform guess."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32, attn_implementation="eager").eval()
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(MODEL_DIR).parameters()} == {torch.bfloat16}
    assert model.config.sliding_window < CTX
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    held_out = pack(tokenizer, [document for document in corpus if is_held_out(document)])[::8]
    loss = mean_loss(model, held_out)
    assert loss <= math.log(VOCAB) - 2
    readme = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"\*\*([\d.]+) nats\*\*", readme)
    assert stated is not None
    # another sample and maybe another Python's text, so near the stated figure but not equal to it
    assert loss == pytest.approx(float(stated[1]), abs=0.5)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in readme
