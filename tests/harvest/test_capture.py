"""Sites and their reading, against hooks on the plain Hugging Face model and against the residual stream's own sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.models.bodies import body_of, drop_later_layers, text_model
from sparse_pipeline.models.capture import SiteReader
from sparse_pipeline.models.checkpoint import find_checkpoint
from sparse_pipeline.models.families import FAMILIES
from sparse_pipeline.models.loading import load_model
from sparse_pipeline.models.site_names import format_site
from sparse_pipeline.models.sites import resolve_sites
from sparse_pipeline.shared.errors import UsageError

LAYERS = 3
IDS = torch.randint(4, 90, (3, 12), generator=torch.Generator().manual_seed(5))
COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 12}
GEMMA = {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 12}
EXPERTS = {**GROUPED, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 2]}}
GROUPED_MROPE = {**GROUPED, **MROPE}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gemma", "llama", "mistral", "ministral3", "qwen2", "qwen3", "arcee", "cwm", "ernie4_5"), GROUPED),
    **dict.fromkeys(("granite", "helium", "jais2", "nanochat", "seed_oss", "smollm3", "starcoder2"), GROUPED),
    **dict.fromkeys(("cohere", "cohere2", "olmo3", "exaone4", "apertus", "vaultgemma"), GROUPED),
    **dict.fromkeys(("glm", "glm4"), GROUPED),
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"), GROUPED_MROPE),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
    "afmoe": {**EXPERTS, "num_experts": 4, "num_dense_layers": 1, "num_shared_experts": 1},
    "codegen": {"rotary_dim": 4, "num_attention_heads": 4},
    "ernie4_5_moe": {**EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "flex_olmo": {**EXPERTS, "num_experts": 4},
    "gemma3n_text": {
        **GEMMA,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        "laurel_rank": 4,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "glm4_moe": {
        **EXPERTS,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "pad_token_id": 0,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 4},
    "gpt_oss": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "gptj": {"rotary_dim": 8},
    "llama4_text": {
        **GROUPED,
        "intermediate_size_mlp": 40,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8,
    },
    "ministral": {**GROUPED, "sliding_window": 4},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "mpt": {"expansion_ratio": 2, "max_seq_len": 32},
    "olmoe": {**EXPERTS, "num_experts": 4},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 24},
    "phi3": {"pad_token_id": 0},
    "phimoe": {**GROUPED, "num_local_experts": 4},
    "qwen2_moe": {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**EXPERTS, "num_experts": 4},
    "qwen3_vl_moe_text": {**EXPERTS, **MROPE, "num_experts": 4},
    "stablelm": {
        **GROUPED,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "xglm": {"ffn_dim": 40, "attention_heads": 2},
}


def random_model(family: str, **changes: Any) -> nn.Module:
    """A tiny model of the family in float32, its norms' gains random too."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    torch.manual_seed(11)
    config = AutoConfig.for_model(family, **(COMMON | OWN.get(family, {}) | changes))
    auto: Any = AutoModelForCausalLM if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModel
    model: nn.Module = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def read_sites(model: nn.Module, names: tuple[str, ...], ids: Tensor = IDS) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with SiteReader(model, body_of(model), resolve_sites(names, model)) as reader:
        reader.read(ids, None, lambda name, value: found.__setitem__(name, value.clone()))
    return found


@pytest.mark.parametrize("to_the_end", [False, True])
def test_a_pass_ends_at_its_last_site_or_computes_to_the_end(to_the_end: bool) -> None:
    """To the end a module may be called again, as where layers share one; what it was read as stays."""
    model = random_model("gemma2")
    names = ("layer_00.resid_mid", "layer_00.mlp_out")
    expected = read_sites(model, names)
    body = body_of(model)
    called: list[int] = []
    last = body.layers[-1]  # type: ignore[union-attr,index]
    last.register_forward_hook(lambda *_: called.append(1))
    last.mlp = body.layers[0].mlp  # type: ignore[union-attr,index]
    last.post_feedforward_layernorm = body.layers[0].post_feedforward_layernorm  # type: ignore[union-attr,index]
    found: dict[str, Tensor] = {}
    with SiteReader(model, body, resolve_sites(names, model), to_the_end=to_the_end) as reader:
        reader.read(IDS, None, lambda name, value: found.__setitem__(name, value.clone()))
    assert len(called) == to_the_end
    assert all(torch.equal(found[name], expected[name]) for name in names)


VARIANTS: dict[str, dict[str, Any]] = {
    "falcon": {"multi_query": True, "parallel_attn": True},
    "falcon, one after the other": {"parallel_attn": False, "alibi": True, "multi_query": False, "bias": True},
    "falcon, new": {"new_decoder_architecture": True, "num_kv_heads": 1, "parallel_attn": True},
    "gpt_neox, one after the other": {"use_parallel_residual": False},
    "granite, scaled": {"residual_multiplier": 0.5},
    "opt, norms last": {"do_layer_norm_before": False},
    "stablelm, parallel": {"use_parallel_residual": True},
}
"""Checkpoints of a family whose layers are built otherwise."""


@pytest.mark.parametrize("case", sorted({*FAMILIES, *VARIANTS}))
def test_sites_add_up_to_the_residual_stream(case: str) -> None:
    """resid_pre + attn_out = resid_mid, + mlp_out = resid_post = the next layer's resid_pre; every layer."""
    family = case.split(",")[0]
    model = random_model(family, **VARIANTS.get(case, {}))
    kinds = FAMILIES[family].kinds_of(model.config)
    names = tuple(format_site(layer, kind) for layer in range(LAYERS) for kind in kinds)
    read = read_sites(model, names)
    assert set(read) == set(names)
    found = text_model(model)
    assert found is not None
    layers: Any = getattr(found[1], FAMILIES[family].list_name)
    with torch.no_grad():
        for layer in range(LAYERS):
            at = {kind: read[format_site(layer, kind)] for kind in kinds}
            assert all(value.shape[:2] == IDS.shape for value in at.values())
            _check_sums(at)
            _check_modules(at, kinds, layers[layer])
            if "resid_post" in at and layer + 1 < LAYERS:
                assert torch.equal(at["resid_post"], read[format_site(layer + 1, "resid_pre")])
                assert torch.equal(at["resid_post"], _hidden_states(model, layers)[layer + 1])


def _hidden_states(model: nn.Module, layers: Any) -> list[Tensor]:
    """The input of every layer in a forward pass of the whole model, head included."""
    hidden: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _m, args: hidden.append(args[0])) for layer in layers]
    model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return hidden


def _check_sums(at: dict[str, Tensor]) -> None:
    for kind in ("attn_out", "mlp_out", "attn_z"):
        assert kind not in at or at[kind].abs().mean() > 0.001
    if "attn_out" not in at or not {"mlp_in_nogain", "resid_mid"}.intersection(at):
        return  # what is added was scaled, or is normalised after the sum
    if "resid_mid" not in at:
        torch.testing.assert_close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"])
    elif "resid_post" in at:
        assert torch.equal(at["resid_pre"] + at["attn_out"], at["resid_mid"])
        assert torch.equal(at["resid_mid"] + at["mlp_out"], at["resid_post"])


def _check_modules(at: dict[str, Tensor], kinds: Any, layer: Any) -> None:
    """What attention, its projection W_O and the MLP's norm compute from one site is the next."""

    def module(kind: str) -> Any:
        return layer.get_submodule(kinds[kind].partition(":")[0])

    if kinds["attn_in"].endswith(":out"):
        assert torch.equal(module("attn_in")(at["resid_pre"]), at["attn_in"])
    if "attn_out" in kinds:
        projected = module("attn_z")(at["attn_z"])
        after = kinds["attn_out"].partition(":")[0]
        expected = module("attn_out")(projected) if "norm" in after else projected
        torch.testing.assert_close(expected, at["attn_out"])
    if kinds.get("mlp_in_nogain", "").endswith(":nogain"):
        norm, before = module("mlp_in_nogain"), at.get("resid_mid", at["resid_pre"])
        torch.testing.assert_close(norm(before), at["mlp_in"])
        epsilon = next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))
        of = torch.nn.functional.rms_norm if "RMS" in type(norm).__name__ else torch.nn.functional.layer_norm
        torch.testing.assert_close(of(before, before.shape[-1:], eps=epsilon), at["mlp_in_nogain"])
    if hasattr(layer, "mlp") and not kinds.get("mlp_out", "mlp.").startswith("mlp."):
        out = layer.mlp(at["mlp_in"])
        out = out[0] if isinstance(out, tuple) else out
        out = out if kinds["mlp_out"].startswith("mlp:") else module("mlp_out")(out)
        torch.testing.assert_close(out, at["mlp_out"])


@pytest.mark.parametrize("family", ["gpt_neox", "gptj", "phi"])
def test_a_parallel_block_has_nothing_between_attention_and_mlp(family: str) -> None:
    with pytest.raises(
        UsageError, match="have no 'resid_mid': attention and MLP of a layer run side by side"
    ) as caught:
        resolve_sites(("layer_01.resid_mid",), random_model(family))
    exist = "resid_pre, attn_in, attn_z, attn_out, mlp_in, mlp_in_nogain, mlp_out, resid_post"
    assert caught.value.hint == f"the kinds that exist: {exist}"


def test_gemma2_module_paths_are_those_of_the_design(tiny_model: Path) -> None:
    checkpoint = find_checkpoint(HarvestConfig(model=str(tiny_model), ctx=16))
    model = load_model(checkpoint, "tiny")
    kinds = ("resid_pre", "resid_mid", "mlp_in", "mlp_out", "attn_out", "resid_post")
    sites = resolve_sites(tuple(format_site(1, kind) for kind in kinds), model)
    assert {site.kind: f"{site.module_path}:{site.io}" for site in sites} == {
        "resid_pre": "model.layers.1:in",
        "resid_mid": "model.layers.1.pre_feedforward_layernorm:in",
        "mlp_in": "model.layers.1.pre_feedforward_layernorm:out",
        "mlp_out": "model.layers.1.post_feedforward_layernorm:out",
        "attn_out": "model.layers.1.post_attention_layernorm:out",
        "resid_post": "model.layers.1:out",
    }


def test_nothing_is_computed_after_the_last_site() -> None:
    model = random_model("gemma2")
    ran: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _m, _a, name=name: ran.append(name))
    read_sites(model, ("layer_01.resid_mid",))
    assert "model.layers.1.post_attention_layernorm" in ran
    assert not [
        name for name in ran if name.startswith(("model.layers.1.mlp", "model.layers.2", "model.norm", "lm_head"))
    ]


def test_the_model_is_left_as_it_was() -> None:
    model = random_model("gemma2")
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        read_sites(model, ("layer_00.mlp_out",))
        assert torch.equal(model(input_ids=IDS).logits, before)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_dropping_later_layers_changes_no_site() -> None:
    model = random_model("gemma2")
    names = ("layer_01.resid_mid", "layer_01.mlp_out")
    before = read_sites(model, names)
    drop_later_layers(model, resolve_sites(names, model))
    assert len(model.get_submodule("model.layers")) == 2  # type: ignore[arg-type]
    after = read_sites(model, names)
    assert all(torch.equal(before[name], after[name]) for name in names)


def test_any_module_path_of_an_encoder() -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=96, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40)
    model = BertModel(config).eval()
    name = "encoder.layer.1.output:out"
    found = read_sites(model, (name, "encoder.layer.0:in"))
    with torch.no_grad():
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[name], states[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["encoder.layer.0:in"], states[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("site", "message", "hint"),
    [
        ("layer_03.resid_mid", "the model has 3 layers", "the last one is layer_02.resid_mid"),
        ("layer_01.resid_middle", "no 'resid_middle'; did you mean 'resid_mid'", "resid_mid, mlp_in, mlp_in_nogain"),
        (
            "model.layers.1.mpl:out",
            "no module 'model.layers.1.mpl'; did you mean 'model.layers.1.mlp'",
            "model.layers.N",
        ),
        ("resid_mid", "no site is called 'resid_mid'", ""),
    ],
)
def test_bad_site_names_say_which_exist(site: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_sites((site,), random_model("gemma2"))
    assert hint in str(caught.value.hint)


def test_a_family_without_a_table_takes_module_paths() -> None:
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(UsageError, match="no table of sites for models of type 'bert'"):
        resolve_sites(("layer_00.resid_mid",), model)


def test_a_site_where_no_token_vectors_pass() -> None:
    model = random_model("gemma2")
    with pytest.raises(UsageError, match="expected one vector for each token"):
        read_sites(model, ("model.rotary_emb:out",))
    with pytest.raises(UsageError, match="does not call this module"):
        read_sites(model, ("lm_head:out",))
    with pytest.raises(UsageError, match="more than once"):
        act = model.get_submodule("model.layers.0.mlp.act_fn")
        for layer in model.get_submodule("model.layers"):  # type: ignore[union-attr]
            layer.mlp.act_fn = act  # type: ignore[union-attr]
        read_sites(model, ("model.layers.0.mlp.act_fn:out", "layer_02.mlp_out"))
