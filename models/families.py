"""Which module of a model family each site is: a table of module paths instead of code per model.

Names and placement follow TransformerLens. ``attn_out`` and ``mlp_out`` are read as they are added: where norms follow
attention and MLP (Gemma-2, Gemma-3, OLMo-2, GLM-4), they are the outputs of these norms. So in every family
``resid_pre + attn_out = resid_mid`` and ``resid_mid + mlp_out = resid_post``; where attention and MLP run side by
side (GPT-NeoX, GPT-J, Phi, Falcon, Cohere) there is no ``resid_mid``, and ``resid_pre + attn_out + mlp_out =
resid_post``. ``attn_z`` is what the heads give before W_O. A family that lacks a kind says why.

The tests read every family's sites on a random model and check these sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Kinds = Mapping[str, str]
"""Kind of site → the path below a layer, and the side; an empty path is the layer itself."""

_PARALLEL = "attention and MLP of a layer run side by side, and both read resid_pre"
_SCALED = "this checkpoint multiplies what attention and MLP give (residual_multiplier) before it is added"
_POST = "this checkpoint normalises after each addition, so no sum of the two is carried on"
_STREAMS = "a layer hands several streams to the next one (AltUp)"


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its layers, and where in a layer its sites are.

    Attributes:
        layers: path of the list of layers below ``AutoModelForCausalLM``. Nested in another model, the path of the text
            model differs, the name of the list does not.
        kinds: the kinds of site of its usual checkpoints.
        varies: the kinds of site by the text model's configuration, where checkpoints differ.
        compiles: its forward pass is one graph for `torch.compile`.
        lacks: kind of site → why the family, or a checkpoint of it, has none.
    """

    layers: str
    kinds: Kinds
    compiles: bool = True
    lacks: Mapping[str, str] = field(default_factory=dict)
    varies: Callable[[Any], Kinds] | None = None

    @property
    def list_name(self) -> str:
        """Name of the list of layers in the text model."""
        return self.layers.rpartition(".")[2]

    def kinds_of(self, config: Any) -> Kinds:
        """The kinds of site that a checkpoint with this configuration has, a text model's or one that nests it."""
        text = config.get_text_config()
        kinds = self.varies(text) if self.varies else self.kinds
        if getattr(text, "residual_multiplier", 1.0) != 1.0:  # Granite
            kinds = {kind: path for kind, path in kinds.items() if kind not in ("attn_out", "mlp_out")}
        return kinds

    def why_not(self, kind: str, config: Any) -> str | None:
        """Why a checkpoint with this configuration lacks a kind of site that others have; None if unknown."""
        if kind in self.lacks:
            return self.lacks[kind]
        if kind in ("attn_out", "mlp_out") and getattr(config.get_text_config(), "residual_multiplier", 1.0) != 1.0:
            return _SCALED
        return _PARALLEL if kind == "resid_mid" else None


def _kinds(
    *, attn_norm: str, attn: str, out: str, mlp_norm: str, mlp: str, after_attn: str = "", after_mlp: str = ""
) -> dict[str, str]:
    """The sites of a layer: norm → attention → (norm) → sum → norm → MLP → (norm) → sum.

    Args:
        attn_norm, mlp_norm: the norms before attention and MLP. If both are one, the two run side by side.
        attn, mlp: the modules of which the outputs are added, unless a norm follows.
        out: the projection W_O.
        after_attn, after_mlp: the norms after attention and MLP.
    """
    kinds = {
        "resid_pre": ":in",
        "attn_in": f"{attn_norm}:out",
        "attn_z": f"{out}:in",
        "attn_out": f"{after_attn or attn}:out",
        "resid_mid": f"{mlp_norm}:in",
        "mlp_in": f"{mlp_norm}:out",
        "mlp_in_nogain": f"{mlp_norm}:nogain",
        "mlp_out": f"{after_mlp or mlp}:out",
        "resid_post": ":out",
    }
    if attn_norm == mlp_norm:
        del kinds["resid_mid"]
    return kinds


_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn": "self_attn",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp": "mlp",
}
_PRE_NORM = _kinds(**_LLAMA)
_SANDWICH = _kinds(
    **_LLAMA
    | {
        "after_attn": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "after_mlp": "post_feedforward_layernorm",
    }
)
_GLM_4 = _kinds(**_LLAMA | {"after_attn": "post_self_attn_layernorm", "after_mlp": "post_mlp_layernorm"})
_AFMOE = _kinds(
    **_LLAMA
    | {"after_attn": "post_attention_layernorm", "mlp_norm": "pre_mlp_layernorm", "after_mlp": "post_mlp_layernorm"}
)
_VAULT_GEMMA = _kinds(**_LLAMA | {"mlp_norm": "pre_feedforward_layernorm"})
_APERTUS = _kinds(**_LLAMA | {"attn_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm"})
_ONE_NORM = _kinds(**_LLAMA | {"mlp_norm": "input_layernorm"})
_POST_NORM = {  # nothing before attention and MLP: they read the residual stream as it is
    "resid_pre": ":in",
    "attn_in": "self_attn:in",
    "attn_z": "self_attn.o_proj:in",
    "attn_out": "post_attention_layernorm:out",
    "resid_mid": "mlp:in",
    "mlp_in": "mlp:in",
    "mlp_out": "post_feedforward_layernorm:out",
    "resid_post": ":out",
}
_GPT = {"attn_norm": "ln_1", "attn": "attn", "out": "attn.c_proj", "mlp_norm": "ln_2", "mlp": "mlp"}
_GPT_J = _kinds(**_GPT | {"mlp_norm": "ln_1", "out": "attn.out_proj"})
_FAIRSEQ = {  # the MLP is two linear maps of the layer itself
    "attn_norm": "self_attn_layer_norm",
    "attn": "self_attn",
    "out": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm",
    "mlp": "fc2",
}
_ALTUP = {  # resid_pre: the stream that attention reads; what the layer hands on is not one state for each token
    "resid_pre": "input_layernorm:in",
    **{kind: path for kind, path in _SANDWICH.items() if kind not in ("resid_pre", "resid_post")},
}
_BLOOM = {  # both modules add the residual stream themselves, after their last projection
    "attn_norm": "input_layernorm",
    "attn": "self_attention.dense",
    "out": "self_attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "mlp": "mlp.dense_4h_to_h",
}
_MPT = {"attn_norm": "norm_1", "attn": "attn", "out": "attn.out_proj", "mlp_norm": "norm_2", "mlp": "ffn.down_proj"}


_NEOX = _kinds(**_LLAMA | {"attn": "attention", "out": "attention.dense"})
_FALCON = _kinds(**_LLAMA | {"attn": "self_attention", "out": "self_attention.dense", "mlp_norm": "input_layernorm"})


def _neox(config: Any) -> Kinds:
    return {kind: path for kind, path in _NEOX.items() if kind != "resid_mid" or not config.use_parallel_residual}


def _stable_lm(config: Any) -> Kinds:
    return _ONE_NORM if config.use_parallel_residual else _PRE_NORM


def _falcon(config: Any) -> Kinds:
    names = {"attn": "self_attention", "out": "self_attention.dense"}
    if config.num_ln_in_parallel_attn == 2 or (config.new_decoder_architecture and not config.num_ln_in_parallel_attn):
        kinds = _kinds(**_LLAMA | names | {"attn_norm": "ln_attn", "mlp_norm": "ln_mlp"})
        del kinds["resid_mid"]
        return kinds
    return _kinds(**_LLAMA | names | ({"mlp_norm": "input_layernorm"} if config.parallel_attn else {}))


def _opt(config: Any) -> Kinds:
    if config.do_layer_norm_before:
        return _kinds(**_FAIRSEQ)
    return {
        "resid_pre": ":in",
        "attn_in": "self_attn:in",
        "attn_z": "self_attn.out_proj:in",
        "attn_out": "self_attn:out",
        "mlp_in": "fc1:in",
        "mlp_out": "fc2:out",
        "resid_post": ":out",
    }


_DENSE = (
    *("arcee", "cwm", "ernie4_5", "gemma", "glm", "granite", "helium", "jais2", "llama", "ministral", "ministral3"),
    *("mistral", "phi3", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3", "qwen3_vl_text"),
    *("seed_oss", "smollm3", "starcoder2"),
)
_NO_GAIN = ("nanochat", "olmo")  # their norms have none
_MIXTURES = (
    *("ernie4_5_moe", "glm4_moe", "gpt_oss", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"),
    "qwen3_vl_moe_text",
)

FAMILIES: dict[str, Family] = {
    **{name: Family("model.layers", _PRE_NORM) for name in _DENSE},
    **{name: Family("model.layers", _PRE_NORM, compiles=False) for name in _MIXTURES},
    **{name: Family("model.layers", _SANDWICH) for name in ("gemma2", "gemma3_text")},
    **{name: Family("model.layers", _POST_NORM) for name in ("olmo2", "olmo3", "exaone4")},
    **{name: Family("model.layers", _ONE_NORM) for name in ("cohere", "cohere2")},
    **{name: Family("transformer.h", _kinds(**_GPT)) for name in ("gpt2", "gpt_bigcode")},
    **{name: Family("transformer.h", _GPT_J) for name in ("gptj", "codegen")},
    **{
        name: Family("model.layers", _PRE_NORM | {"mlp_in_nogain": "post_attention_layernorm:out"}) for name in _NO_GAIN
    },
    "afmoe": Family("model.layers", _AFMOE, compiles=False),
    "apertus": Family("model.layers", _APERTUS),
    "biogpt": Family("biogpt.layers", _kinds(**_FAIRSEQ)),
    "bloom": Family("transformer.h", _kinds(**_BLOOM)),
    "falcon": Family("transformer.h", _FALCON, varies=_falcon),
    "flex_olmo": Family("model.layers", _POST_NORM, compiles=False),
    "gemma3n_text": Family("model.layers", _ALTUP, compiles=False, lacks={"resid_post": _STREAMS}),
    "glm4": Family("model.layers", _GLM_4),
    "gpt_neo": Family("transformer.h", _kinds(**_GPT | {"out": "attn.attention.out_proj"})),
    "gpt_neox": Family("gpt_neox.layers", _NEOX, varies=_neox),
    "llama4_text": Family("model.layers", _kinds(**_LLAMA | {"mlp": "feed_forward"}), compiles=False),
    "mpt": Family("transformer.blocks", _kinds(**_MPT)),
    "opt": Family(
        "model.decoder.layers",
        _kinds(**_FAIRSEQ),
        lacks={"resid_mid": _POST, "mlp_in_nogain": _POST},
        varies=_opt,
    ),
    "persimmon": Family("model.layers", _kinds(**_LLAMA | {"out": "self_attn.dense"})),
    "phi": Family("model.layers", _ONE_NORM | {"attn_z": "self_attn.dense:in"}),
    "stablelm": Family("model.layers", _PRE_NORM, varies=_stable_lm),
    "vaultgemma": Family("model.layers", _VAULT_GEMMA),
    "xglm": Family("model.layers", _kinds(**_FAIRSEQ)),
}
"""``model_type`` of the text model's configuration → where its sites are."""


def family_of(config: Any) -> Family | None:
    """The family of a checkpoint's text model; None if there is no table of it."""
    return FAMILIES.get(config.get_text_config().model_type)
