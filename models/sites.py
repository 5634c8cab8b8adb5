"""Which module of a model family each site is: a table of module paths instead of code per model.

Names and placement follow TransformerLens. ``attn_out`` and ``mlp_out`` are read as they are added: in Gemma-2,
Gemma-3 and OLMo-2 they are the outputs of the norms that follow attention and MLP. So in every
family ``resid_pre + attn_out = resid_mid`` and ``resid_mid + mlp_out = resid_post``; where attention and MLP run side
by side (GPT-NeoX, GPT-J, Phi) there is no ``resid_mid``, and ``resid_pre + attn_out + mlp_out = resid_post``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..shared.config.registry import did_you_mean
from ..shared.errors import UsageError
from .site_names import KINDS, Site, format_site, parse_module_site, parse_site

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its layers, and the path (below a layer) and side of every kind of site it has.

    Attributes:
        layers: path of the list of layers below ``AutoModelForCausalLM``.
        kinds: kind of site → path below a layer and side; an empty path is the layer itself.
        parallel: whether attention and MLP of a layer both read ``resid_pre``, with no site between them: always,
            never, or if this field of the checkpoint's configuration is true.
    """

    layers: str
    kinds: Mapping[str, str]
    parallel: bool | str = False

    def kinds_of(self, config: Any) -> Mapping[str, str]:
        """The kinds of site that a checkpoint with this configuration has."""
        if not self.is_parallel(config):
            return self.kinds
        return {kind: path for kind, path in self.kinds.items() if kind != "resid_mid"}

    def is_parallel(self, config: Any) -> bool:
        return bool(getattr(config, self.parallel)) if isinstance(self.parallel, str) else self.parallel


_SANDWICH = {  # a norm before and after both attention and MLP
    "resid_pre": ":in",
    "attn_in": "input_layernorm:out",
    "attn_out": "post_attention_layernorm:out",
    "resid_mid": "pre_feedforward_layernorm:in",
    "mlp_in": "pre_feedforward_layernorm:out",
    "mlp_out": "post_feedforward_layernorm:out",
    "resid_post": ":out",
}
_PRE_NORM = {
    "resid_pre": ":in",
    "attn_in": "input_layernorm:out",
    "attn_out": "self_attn:out",
    "resid_mid": "post_attention_layernorm:in",
    "mlp_in": "post_attention_layernorm:out",
    "mlp_out": "mlp:out",
    "resid_post": ":out",
}
_POST_NORM = {  # nothing before attention and MLP: they read the residual stream as it is
    "resid_pre": ":in",
    "attn_in": "self_attn:in",
    "attn_out": "post_attention_layernorm:out",
    "resid_mid": "mlp:in",
    "mlp_in": "mlp:in",
    "mlp_out": "post_feedforward_layernorm:out",
    "resid_post": ":out",
}
_ONE_NORM = {  # one norm feeds both
    "resid_pre": ":in",
    "attn_in": "input_layernorm:out",
    "attn_out": "self_attn:out",
    "mlp_in": "mlp:in",
    "mlp_out": "mlp:out",
    "resid_post": ":out",
}
_GPT = {
    "resid_pre": ":in",
    "attn_in": "ln_1:out",
    "attn_out": "attn:out",
    "resid_mid": "ln_2:in",
    "mlp_in": "ln_2:out",
    "mlp_out": "mlp:out",
    "resid_post": ":out",
}
_NEOX = _PRE_NORM | {"attn_out": "attention:out"}
_GPT_J = _ONE_NORM | {"attn_in": "ln_1:out", "attn_out": "attn:out"}

FAMILIES: dict[str, Family] = {
    "gemma2": Family("model.layers", _SANDWICH),
    "gemma3_text": Family("model.layers", _SANDWICH),
    "gpt2": Family("transformer.h", _GPT),
    "gpt_neo": Family("transformer.h", _GPT),
    "gpt_neox": Family("gpt_neox.layers", _NEOX, parallel="use_parallel_residual"),
    "gptj": Family("transformer.h", _GPT_J, parallel=True),
    "llama": Family("model.layers", _PRE_NORM),
    "mistral": Family("model.layers", _PRE_NORM),
    "olmo": Family("model.layers", _PRE_NORM),
    "olmo2": Family("model.layers", _POST_NORM),
    "phi": Family("model.layers", _ONE_NORM, parallel=True),
    "phi3": Family("model.layers", _PRE_NORM),
    "qwen2": Family("model.layers", _PRE_NORM),
    "qwen3": Family("model.layers", _PRE_NORM),
}
"""``model_type`` of a checkpoint's config.json → where its sites are, as paths below ``AutoModelForCausalLM``."""


def resolve_sites(names: tuple[str, ...], model: nn.Module, model_type: str) -> list[Site]:
    """The module and the side of every named site, in the order of the names.

    Raises:
        UsageError: a name is malformed, or the layer, kind or module was not found; lists the ones that exist.
    """
    modules = dict(model.named_modules())
    config = getattr(model, "config", None)
    return [_resolve(name, modules, model_type, config) for name in names]


def _resolve(name: str, modules: Mapping[str, Any], model_type: str, config: Any) -> Site:
    layer, kind = parse_site(name)
    if layer is None or kind is None:
        path, io = parse_module_site(name)
        if path not in modules:
            raise UsageError(
                f"site {name}: the model has no module {path!r}{did_you_mean(path, modules)}",
                hint=f"its modules: {_outline(modules)}",
            )
        return Site(name, None, None, path, io)
    family = FAMILIES.get(model_type)
    if family is None:
        raise UsageError(
            f"site {name}: no table of sites for models of type {model_type!r} (known: "
            f"{', '.join(sorted(FAMILIES))}); give module paths instead, such as some.module:out",
            hint=f"its modules: {_outline(modules)}",
        )
    kinds = family.kinds_of(config)
    if kind not in kinds:
        exist = [known for known in KINDS if known in kinds]
        why = did_you_mean(kind, exist)
        if kind == "resid_mid":
            why = ": attention and MLP of a layer run side by side, and both read resid_pre"
        raise UsageError(
            f"site {name}: models of type {model_type} have no {kind!r}{why}",
            hint=f"the kinds that exist: {', '.join(exist)}",
        )
    n_layers = len(modules[family.layers])
    if layer >= n_layers:
        last = format_site(n_layers - 1, kind)
        raise UsageError(f"site {name}: the model has {n_layers} layers", hint=f"the last one is {last}")
    below, _, _ = kinds[kind].partition(":")
    path, io = parse_module_site(f"{family.layers}.{layer}{'.' if below else ''}{kinds[kind]}")
    return Site(format_site(layer, kind), layer, kind, path, io)


def _outline(modules: Mapping[str, Any]) -> str:
    """The module paths with N for the numbers of repeated blocks, so that a deep model fits on a screen."""
    seen = dict.fromkeys(".".join("N" if part.isdigit() else part for part in path.split(".")) for path in modules)
    paths = [path for path in seen if path]
    return ", ".join(paths[:60]) + (f" and {len(paths) - 60} more" if len(paths) > 60 else "")
