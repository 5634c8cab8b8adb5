"""Every kind of site of every family, against TransformerLens: other code for the same models, with hooks of its own.

Tiny checkpoints with random weights are written to disk, read back by the harvest's own loader, and converted for
TransformerLens's `HookedTransformer`, which computes its own attention, norms, rotary embeddings and residual stream.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.models.checkpoint import find_checkpoint
from sparse_pipeline.models.families import FAMILIES
from sparse_pipeline.models.loading import load_model
from sparse_pipeline.models.site_names import format_site
from tests.harvest.test_capture import LAYERS, random_model, read_sites

BOS, CTX = 1, 12

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformer_lens = pytest.importorskip("transformer_lens", reason="the dev extra installs transformer-lens")
    from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

ROTARY = {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": False}
RMS: dict[str, Any] = {**ROTARY, "normalization_type": "RMS", "final_rms": True, "gated_mlp": True, "eps": 1e-6}
LN: dict[str, Any] = {"normalization_type": "LN", "eps": 1e-5}
GROUPED = {"n_key_value_heads": 1, "rotary_dim": 12}
WINDOWED = {"use_local_attn": True, "window_size": 4}
HALF_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}}
GEMMA = {**RMS, **GROUPED, **WINDOWED, "act_fn": "gelu_pytorch_tanh", "use_normalization_before_and_after": True}

HOW: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma2": (
        "Gemma2ForCausalLM",
        {},
        {
            **GEMMA,
            "attn_types": ["local", "global", "local"],
            "attn_scores_soft_cap": 50.0,
            "output_logits_soft_cap": 30.0,
        },
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {
            **GEMMA,
            "attn_types": ["local", "global", "local"],
            "use_qk_norm": True,
            "rotary_base": 1_000_000,
            "rotary_base_local": 10_000,
        },
    ),
    "gpt2": ("GPT2LMHeadModel", {}, {**LN, "act_fn": "gelu_new", "d_mlp": 96}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {},
        {
            **LN,
            **WINDOWED,
            "act_fn": "gelu_new",
            "attn_types": ["global", "local", "global"],
            "use_attn_scale": False,
        },
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {"use_parallel_residual": True, **HALF_ROTARY},
        {**LN, **ROTARY, "act_fn": "gelu", "parallel_attn_mlp": True, "rotary_dim": 6},
    ),
    "gpt_neox, one after the other": (
        "GPTNeoXForCausalLM",
        {"use_parallel_residual": False, **HALF_ROTARY},
        {**LN, **ROTARY, "act_fn": "gelu", "rotary_dim": 6},
    ),
    "llama": ("LlamaForCausalLM", {}, {**RMS, **GROUPED, "act_fn": "silu"}),
    "mistral": (
        "MistralForCausalLM",
        {"sliding_window": 4},
        {**RMS, **GROUPED, **WINDOWED, "act_fn": "silu", "attn_types": ["local"] * LAYERS},
    ),
    "olmo2": ("Olmo2ForCausalLM", {}, {**RMS, "act_fn": "silu", "rotary_dim": 12, "eps": 1e-5}),
    "phi": ("PhiForCausalLM", {}, {**LN, **ROTARY, "act_fn": "gelu_new", "parallel_attn_mlp": True, "rotary_dim": 6}),
    "phi3": ("Phi3ForCausalLM", {}, {**RMS, "act_fn": "silu", "rotary_dim": 12, "eps": 1e-5}),
    "qwen2": ("Qwen2ForCausalLM", {}, {**RMS, **GROUPED, "act_fn": "silu"}),
    "qwen3": ("Qwen3ForCausalLM", {}, {**RMS, **GROUPED, "act_fn": "silu", "use_qk_norm": True}),
}
"""Family → the architecture's name, changes to its configuration, and how TransformerLens describes it."""


def lens_of(model: Any, architecture: str, settings: dict[str, Any]) -> Any:
    """The same weights in TransformerLens."""
    config = transformer_lens.HookedTransformerConfig(
        **(
            {
                "d_model": 24,
                "d_head": 12,
                "n_heads": 2,
                "d_mlp": 40,
                "n_layers": LAYERS,
                "n_ctx": 32,
                "d_vocab": 96,
                "dtype": torch.float32,
                "original_architecture": architecture,
                "device": "cpu",
                "seed": 0,
            }
            | settings
        )
    )
    lens = transformer_lens.HookedTransformer(config)
    # The name must be one that the library knows; the weights are those of the model that is given.
    state = get_pretrained_state_dict("gpt2", config, hf_model=model, dtype=torch.float32)
    lens.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return lens.eval()


def lens_sites(lens: Any, ids: Tensor) -> dict[str, Tensor]:
    """What TransformerLens has at its hooks; the normalised MLP input is what comes out of its second norm."""
    mlp_in: dict[str, Tensor] = {}
    post_norm = lens.cfg.original_architecture == "Olmo2ForCausalLM"
    for layer, block in enumerate(lens.blocks):
        module, io = (block.mlp, 0) if post_norm else (block.ln2, 1)
        module.register_forward_hook(
            lambda _m, args, out, layer=layer, io=io: mlp_in.__setitem__(
                format_site(layer, "mlp_in"), out if io else args[0]
            )
        )
    with torch.no_grad():
        _, cache = lens.run_with_cache(ids, prepend_bos=False)
    found = dict(mlp_in)
    for layer in range(LAYERS):
        found[format_site(layer, "attn_z")] = cache[f"blocks.{layer}.attn.hook_z"].flatten(-2)
        if not post_norm:
            found[format_site(layer, "mlp_in_nogain")] = cache[f"blocks.{layer}.ln2.hook_normalized"]
        for kind in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
            hook = f"blocks.{layer}.hook_{kind}"
            if hook in cache:
                found[format_site(layer, kind)] = cache[hook]
    return found


@pytest.mark.parametrize("family", sorted(HOW))
@pytest.mark.filterwarnings("ignore")
def test_every_site_is_where_transformer_lens_has_it(family: str, tmp_path: Path) -> None:
    architecture, changes, settings = HOW[family]
    model_type = family.split(",")[0]
    random_model(model_type, **changes).save_pretrained(tmp_path / "model")  # type: ignore[operator]
    checkpoint = find_checkpoint(HarvestConfig(model=str(tmp_path / "model"), ctx=CTX, device="cpu"))
    model = load_model(checkpoint, family)
    assert checkpoint.model_type == model_type
    lens = lens_of(model, architecture, settings)
    body = torch.randint(4, 90, (3, CTX), generator=torch.Generator().manual_seed(5))
    with_bos = torch.cat([torch.full((3, 1), BOS), body[:, 1:]], dim=1)
    for ids in (with_bos, body):
        expected = lens_sites(lens, ids)
        kinds = [kind for kind in FAMILIES[model_type].kinds_of(model.config) if kind != "attn_in"]
        assert set(expected) == {format_site(layer, kind) for layer in range(LAYERS) for kind in kinds}
        found = read_sites(model, tuple(expected), ids)
        for name, value in expected.items():
            assert value.abs().mean() > 0.01, name
            torch.testing.assert_close(
                found[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )
