"""The names that other tools give to places in a model, and our names of the same sites.

TransformerLens's hooks (`blocks.8.hook_mlp_out`), which SAELens and circuit-tracer use, and the module paths of
`transformers` (`model.layers.8.mlp`), which sparsify and Gemma Scope 2 use. Three traps:

- `ln2.hook_normalized` is the norm *without* its gain: the site resid_mid, divided by its root mean square. The norm
  with its gain is `mlp.hook_in`, our mlp_in.
- Where both are given, the module path counts: SAELens calls Gemma Scope 2's inputs `hook_mlp_in`, which is another
  place in TransformerLens, but their `hf_hook_name` is right.
- In Gemma-2 and Gemma-3 the MLP module's output is not mlp_out: a norm follows, and mlp_out is what that norm gives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..models.families import FAMILIES
from ..models.site_names import format_site, parse_module_site, parse_site
from ..shared.errors import DataError, UsageError
from ..shared.hook_names import KIND_OF

_TL_KINDS = {kind: hook for hook, kind in KIND_OF.items()} | {"attn_in": "attn.hook_in", "mlp_in": "mlp.hook_in"}
"""Kind of site → TransformerLens's hook below `blocks.L.` (`hook_in` of a module: its TransformerBridge and
circuit-tracer)."""

_TL_SITES = {hook: (kind, False) for kind, hook in _TL_KINDS.items()} | {
    "hook_mlp_in": ("resid_mid", False),
    "hook_attn_in": ("resid_pre", False),
    "ln2.hook_normalized": ("resid_mid", True),
    "ln1.hook_normalized": ("resid_pre", True),
}
"""Hook → (kind of site, whether the input is divided by its root mean square)."""

_NORMALIZED = {"resid_mid": "ln2.hook_normalized", "resid_pre": "ln1.hook_normalized"}

_HOOK_Z = _TL_KINDS["attn_z"]
_MLP_OUT = "mlp.hook_out"

_NAMES = (
    (r"gemma-?2|(^|/)demo$", "gemma2"),
    (r"gemma-?3", "gemma3_text"),
    (r"pythia|neox", "gpt_neox"),
    (r"gpt-?neo|tinystories", "gpt_neo"),
    (r"gpt-?j", "gptj"),
    (r"gpt-?2", "gpt2"),
    (r"llama", "llama"),
    (r"mistral", "mistral"),
    (r"qwen-?3", "qwen3"),
    (r"qwen-?2", "qwen2"),
    (r"olmo-?2", "olmo2"),
    (r"olmo", "olmo"),
    (r"phi-?3", "phi3"),
    (r"phi", "phi"),
)

_LAYER_NORM = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "phi", "olmo")
"""Model types whose norms also subtract the mean."""


@dataclass(frozen=True)
class Reading:
    """What a hook reads: a site, and whether the coder's input is divided by its root mean square."""

    site: str
    rms: bool = False


def model_type_of(model: str | None) -> str | None:
    """`model_type` of a published model, guessed from its name; None if no known family is in it."""
    name = (model or "").lower()
    return next((kind for pattern, kind in _NAMES if re.search(pattern, name)), None)


def tl_hook(site: str, rms: bool = False) -> str:
    """TransformerLens's name of a site.

    Raises:
        UsageError: it has none.
    """
    layer, kind = parse_site(site)
    if layer is not None and kind is not None:
        if rms and kind not in _NORMALIZED:
            raise UsageError(f"{site} divided by its root mean square has no hook in TransformerLens")
        return f"blocks.{layer}.{_NORMALIZED[kind] if rms else _TL_KINDS[kind]}"
    path, io = parse_module_site(site)
    match = re.fullmatch(r".*\.(\d+)\.(self_attn\.o_proj|mlp)", path)
    if match and not rms and (match[2], io) == ("self_attn.o_proj", "in"):
        return f"blocks.{match[1]}.{_HOOK_Z}"
    if match and not rms and (match[2], io) == ("mlp", "out"):
        return f"blocks.{match[1]}.{_MLP_OUT}"
    raise UsageError(
        f"site {site}: TransformerLens has no hook known to read this module",
        "--to safetensors   (needs no hook)",
    )


def from_tl(hook: str, model: str | None, where: str) -> Reading:
    """The site that a hook of TransformerLens reads.

    Args:
        model: name of the model; decides what a norm's output means.
        where: what holds the name, for errors.

    Raises:
        DataError: no site of ours is what the hook reads.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if match is None:
        raise DataError(
            f"{where}: hook {hook!r} is not of the form blocks.LAYER.HOOK",
            "pipeline import PATH --source SITE --target SITE   (says what it reads and writes)",
        )
    layer, rest, family = int(match[1]), match[2], model_type_of(model)
    if rest in _TL_SITES:
        kind, rms = _TL_SITES[rest]
        if rms and family in _LAYER_NORM:
            raise DataError(
                f"{where}: {hook} of {model} also subtracts the mean (a LayerNorm); only division by the root mean "
                "square is known here",
                "harvest the norm's output and pipeline import PATH --source layer_NN.mlp_in, if its gain is folded",
            )
        return Reading(format_site(layer, kind), rms)
    if rest == _MLP_OUT:
        return Reading(from_module(f"{_layers(family)}.{layer}.mlp", "out", family))
    raise DataError(
        f"{where}: hook {hook!r} is not known (known: {', '.join([*_TL_SITES, _MLP_OUT])})",
        "pipeline import PATH --source SITE --target SITE   (says what it reads and writes)",
    )


def _layers(family: str | None) -> str:
    return FAMILIES[family].layers if family else "model.layers"


def from_module(path: str, io: str, family: str | None) -> str:
    """Our name of a module's input or output: a kind of site if the family is known and has it, else the path."""
    if family in FAMILIES:
        table = FAMILIES[family]
        match = re.fullmatch(re.escape(table.layers) + r"\.(\d+)(?:\.(.+))?", path)
        if match:
            wanted = f"{match[2] or ''}:{io}"
            for kind, place in table.kinds.items():
                if place == wanted:
                    return format_site(int(match[1]), kind)
    return f"{path}:{io}"


def from_hf(hook: str, model: str | None, where: str) -> Reading:
    """The site of a `transformers` hook point, `model.layers.8.post_feedforward_layernorm.output`.

    Raises:
        DataError: the name does not end in .input or .output.
    """
    match = re.fullmatch(r"(?:language_model\.|model\.language_model\.)?(.+)\.(input|output)", hook)
    if match is None:
        raise DataError(f"{where}: hook point {hook!r} does not end in .input or .output")
    path = match[1] if match[1].startswith("model.") else f"model.{match[1]}"
    return Reading(from_module(path, "in" if match[2] == "input" else "out", model_type_of(model)))


def module_of(site: str, family: str | None) -> tuple[str, str] | None:
    """(module path, "in" or "out") of a site; None where the family is not known or lacks the kind."""
    layer, kind = parse_site(site)
    if layer is None or kind is None:
        return parse_module_site(site)
    if family not in FAMILIES or kind not in FAMILIES[family].kinds:
        return None
    below, _, io = FAMILIES[family].kinds[kind].partition(":")
    return f"{FAMILIES[family].layers}.{layer}{'.' if below else ''}{below}", io


def to_hf(site: str, family: str | None) -> str | None:
    """A site as a `transformers` hook point; None where its module is not known."""
    found = module_of(site, family)
    return None if found is None or found[1] == "nogain" else f"{found[0]}.{'input' if found[1] == 'in' else 'output'}"


def is_module_path(text: str) -> bool:
    """Whether a text can be the path of a module with a layer in it."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", text) is not None and layer_of(f"{text}:out") is not None


def layer_of(site: str) -> int | None:
    """The layer of a site, also of a module path with a number in it; None without one."""
    layer, _ = parse_site(site)
    if layer is not None:
        return layer
    match = re.search(r"\.(\d+)(?:[.:]|$)", site)
    return int(match[1]) if match else None
