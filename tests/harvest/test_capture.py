"""Sites and their reading, against hooks on the plain Hugging Face model and against the residual stream's own sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.models.capture import SiteReader
from sparse_pipeline.models.checkpoint import body_of, drop_later_layers, find_checkpoint, load_model
from sparse_pipeline.models.site_names import format_site
from sparse_pipeline.models.sites import FAMILIES, resolve_sites
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
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 12}
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 12},
    "gemma3_text": {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 12},
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 4},
    "phi3": {"pad_token_id": 0},
}


def random_model(family: str, **changes: Any) -> nn.Module:
    """A tiny model of the family in float32, its norms' gains random too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(11)
    config = AutoConfig.for_model(family, **COMMON, **(OWN.get(family, {}) | changes))
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def read_sites(model: nn.Module, family: str, names: tuple[str, ...], ids: Tensor = IDS) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with SiteReader(model, body_of(model), resolve_sites(names, model, family)) as reader:
        reader.read(ids, None, lambda name, value: found.__setitem__(name, value.clone()))
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sites_add_up_to_the_residual_stream(family: str) -> None:
    """resid_pre + attn_out = resid_mid, + mlp_out = resid_post = the next layer's resid_pre, exactly; every layer."""
    model = random_model(family)
    kinds = FAMILIES[family].kinds_of(model.config)
    names = tuple(format_site(layer, kind) for layer in range(LAYERS) for kind in kinds)
    read = read_sites(model, family, names)
    assert set(read) == set(names)
    hidden: list[Tensor] = []
    layers = model.get_submodule(FAMILIES[family].layers)
    handles = [layer.register_forward_pre_hook(lambda _m, args: hidden.append(args[0])) for layer in layers]  # type: ignore[union-attr]
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer in range(LAYERS):
        at = {kind: read[format_site(layer, kind)] for kind in kinds}
        assert torch.equal(at["resid_pre"], hidden[layer])
        if "resid_mid" in kinds:
            assert torch.equal(at["resid_pre"] + at["attn_out"], at["resid_mid"])
            assert torch.equal(at["resid_mid"] + at["mlp_out"], at["resid_post"])
        else:
            torch.testing.assert_close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"])
        assert at["attn_out"].abs().mean() > 0.01
        assert at["mlp_out"].abs().mean() > 0.01
        # the MLP of this layer maps mlp_in to what is added, after the norm that some families have behind it
        block = layers[layer]  # type: ignore[index]
        norms = [module for name, module in block.named_children() if name in ("input_layernorm", "ln_1")]
        with torch.no_grad():
            out = block.mlp(at["mlp_in"])
            out = block.post_feedforward_layernorm(out) if family in ("gemma2", "gemma3_text", "olmo2") else out
            attn_in = norms[0](at["resid_pre"]) if norms else at["resid_pre"]
        assert torch.equal(out, at["mlp_out"])
        assert torch.equal(attn_in, at["attn_in"])
        if layer + 1 < LAYERS:
            assert torch.equal(at["resid_post"], read[format_site(layer + 1, "resid_pre")])


@pytest.mark.parametrize("family", ["gpt_neox", "gptj", "phi"])
def test_a_parallel_block_has_nothing_between_attention_and_mlp(family: str) -> None:
    with pytest.raises(
        UsageError, match="have no 'resid_mid': attention and MLP of a layer run side by side"
    ) as caught:
        resolve_sites(("layer_01.resid_mid",), random_model(family), family)
    assert caught.value.hint == "the kinds that exist: resid_pre, mlp_in, mlp_out, attn_in, attn_out, resid_post"


def test_gemma2_module_paths_are_those_of_the_design(tiny_model: Path) -> None:
    checkpoint = find_checkpoint(HarvestConfig(model=str(tiny_model), ctx=16))
    model = load_model(checkpoint, "tiny")
    kinds = ("resid_pre", "resid_mid", "mlp_in", "mlp_out", "attn_out", "resid_post")
    sites = resolve_sites(tuple(format_site(1, kind) for kind in kinds), model, "gemma2")
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
    read_sites(model, "gemma2", ("layer_01.resid_mid",))
    assert "model.layers.1.post_attention_layernorm" in ran
    assert not [
        name for name in ran if name.startswith(("model.layers.1.mlp", "model.layers.2", "model.norm", "lm_head"))
    ]


def test_the_model_is_left_as_it_was() -> None:
    model = random_model("gemma2")
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        read_sites(model, "gemma2", ("layer_00.mlp_out",))
        assert torch.equal(model(input_ids=IDS).logits, before)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_dropping_later_layers_changes_no_site() -> None:
    model = random_model("gemma2")
    names = ("layer_01.resid_mid", "layer_01.mlp_out")
    before = read_sites(model, "gemma2", names)
    drop_later_layers(model, "gemma2", resolve_sites(names, model, "gemma2"))
    assert len(model.get_submodule("model.layers")) == 2  # type: ignore[arg-type]
    after = read_sites(model, "gemma2", names)
    assert all(torch.equal(before[name], after[name]) for name in names)


def test_any_module_path_of_an_encoder() -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=96, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40)
    model = BertModel(config).eval()
    name = "encoder.layer.1.output:out"
    found = read_sites(model, "bert", (name, "encoder.layer.0:in"))
    with torch.no_grad():
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[name], states[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["encoder.layer.0:in"], states[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("site", "message", "hint"),
    [
        ("layer_03.resid_mid", "the model has 3 layers", "the last one is layer_02.resid_mid"),
        ("layer_01.resid_middle", "no 'resid_middle'; did you mean 'resid_mid'", "resid_pre, resid_mid, mlp_in"),
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
        resolve_sites((site,), random_model("gemma2"), "gemma2")
    assert hint in str(caught.value.hint)


def test_a_family_without_a_table_takes_module_paths() -> None:
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(UsageError, match="no table of sites for models of type 'bert'"):
        resolve_sites(("layer_00.resid_mid",), model, "bert")


def test_a_site_where_no_token_vectors_pass() -> None:
    model = random_model("gemma2")
    with pytest.raises(UsageError, match="expected one vector for each token"):
        read_sites(model, "gemma2", ("model.rotary_emb:out",))
    with pytest.raises(UsageError, match="does not call this module"):
        read_sites(model, "gemma2", ("lm_head:out",))
    with pytest.raises(UsageError, match="more than once"):
        act = model.get_submodule("model.layers.0.mlp.act_fn")
        for layer in model.get_submodule("model.layers"):  # type: ignore[union-attr]
            layer.mlp.act_fn = act  # type: ignore[union-attr]
        read_sites(model, "gemma2", ("model.layers.0.mlp.act_fn:out", "layer_02.mlp_out"))
