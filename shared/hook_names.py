"""TransformerLens's names of sites, as aliases of this project's: `blocks.8.hook_resid_mid` is `layer_08.resid_mid`.

Same name, same place, but not always the same numbers: TransformerLens by default folds the weights of a norm into the
layer after it, and centres what is written to the residual stream (`fold_ln`, `center_writing_weights`). Activations
here are always those of the model as it is, `HookedTransformer.from_pretrained_no_processing`. Two of its names mislead
and are told apart: `hook_mlp_in` and `hook_attn_in` are the residual stream before the norm.
"""

from __future__ import annotations

import re

from .errors import UsageError

_HOOK = re.compile(r"(?:blocks\.(\d+)\.)?((?:[a-z0-9_]+\.)?hook_[a-z_]+)")

KIND_OF = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "ln2.hook_normalized": "mlp_in_nogain",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}
"""Name below a block → kind of site. `hook_normalized` lies before the norm's gain and bias, so `attn_in` and `mlp_in`,
which a layer reads after them, have no name in TransformerLens."""

_BEFORE_NORM = {"hook_attn_in": ("resid_pre", "attn_in"), "hook_mlp_in": ("resid_mid", "mlp_in")}


def from_hook_name(name: str) -> str:
    """This project's name of the site that TransformerLens calls `name`; any other text unchanged.

    Raises:
        UsageError: a hook of TransformerLens that is no site here, or one that means something else here.
    """
    match = _HOOK.fullmatch(name)
    if match is None:
        return name
    layer, hook = match[1], match[2]
    if layer is None:
        example = KIND_OF.get(hook, "resid_mid")
        raise UsageError(f"{name}: a hook without its layer", f"blocks.8.{hook}, or layer_08.{example}")
    if hook in _BEFORE_NORM:
        stream, kind = _BEFORE_NORM[hook]
        raise UsageError(
            f"{name}: TransformerLens's {hook} is the stream before the norm, {kind} here is what the norm returns",
            f"layer_{int(layer):02d}.{stream} for the first, layer_{int(layer):02d}.{kind} for the second",
        )
    if hook not in KIND_OF:
        raise UsageError(
            f"{name}: not a site here (TransformerLens's names that are: {', '.join(KIND_OF)})",
            "give the module's path with :in or :out, for example model.layers.8.mlp.down_proj:in",
        )
    return f"layer_{int(layer):02d}.{KIND_OF[hook]}"


def to_hook_name(site: str) -> str:
    """TransformerLens's name of a site; a module path unchanged."""
    match = re.fullmatch(r"layer_(\d+)\.([a-z_]+)", site)
    hook = next((hook for hook, kind in KIND_OF.items() if match and kind == match[2]), None)
    return site if match is None or hook is None else f"blocks.{int(match[1])}.{hook}"


def from_hook_names(*names: str) -> tuple[str, ...]:
    """:func:`from_hook_name` of each, with its UsageError as the ValueError that settings report."""
    try:
        return tuple(map(from_hook_name, names))
    except UsageError as error:
        raise ValueError(f"{error.message}; give {error.hint}") from None
