"""The longest sequence of a model, by whatever name its family has for it: held against the model itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from sparse_pipeline.models.checkpoint import LoadSettings, longest_context, settled
from sparse_pipeline.shared.errors import UsageError

SMALL: dict[str, Any] = {"vocab_size": 50, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
USUAL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("family", "settings", "longest"),
    [
        ("GPT2", {"n_positions": 12, "n_embd": 8, "n_layer": 1, "n_head": 2}, 12),
        ("CTRL", {"n_positions": 12, "n_embd": 8, "n_layer": 1, "n_head": 2, "dff": 8}, None),
        ("GPTNeo", {"max_position_embeddings": 12, "hidden_size": 8, "num_layers": 1, "num_heads": 2,
                    "attention_types": [[["global"], 1]]}, 12),
        ("OPT", {"max_position_embeddings": 12, "word_embed_proj_dim": 8, "ffn_dim": 8, **USUAL}, 12),
        ("Bert", {"max_position_embeddings": 12, **USUAL}, 12),
        ("Roberta", {"max_position_embeddings": 12, **USUAL}, 10),
        ("XLMRoberta", {"max_position_embeddings": 12, **USUAL, "pad_token_id": 0}, 11),
        ("BigBird", {"max_position_embeddings": 12, "attention_type": "original_full", **USUAL}, 12),
    ],
)  # fmt: skip
def test_a_longer_sequence_is_refused_and_the_longest_runs(
    family: str, settings: dict[str, Any], longest: int | None
) -> None:
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **settings})
    if longest is None:  # its table is made of sines, and still ends
        longest = 12
    model = getattr(transformers, f"{family}Model")(config).eval()
    with torch.inference_mode():
        model(input_ids=torch.full((1, longest), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 5))
    settled(LoadSettings("tiny", ctx=longest, device="cpu"), "tiny", config, None)
    with pytest.raises(UsageError, match=f"found {longest + 1}, but tiny takes at most {longest} tokens") as caught:
        settled(LoadSettings("tiny", ctx=longest + 1, device="cpu"), "tiny", config, None)
    assert caught.value.hint == f"--set harvest.ctx={longest}"


@pytest.mark.parametrize(
    "config",
    [
        transformers.T5Config(n_positions=4),
        transformers.BloomConfig(seq_length=4),
        transformers.MptConfig(max_seq_len=4),
        transformers.MambaConfig(),
        transformers.FalconConfig(alibi=True, max_position_embeddings=4),
    ],
    ids=lambda config: config.model_type,
)
def test_positions_without_a_table_end_nowhere(config: Any) -> None:
    assert longest_context(config) is None


@pytest.mark.parametrize("name", ["max_sequence_length", "n_ctx", "seq_length", "max_seq_len", "max_source_positions"])
def test_other_names(name: str) -> None:
    text = SimpleNamespace(model_type="other", **{name: 7})
    assert longest_context(SimpleNamespace(get_text_config=lambda: text)) == 7  # type: ignore[arg-type]
