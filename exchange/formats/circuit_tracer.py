"""circuit-tracer: `config.yaml` and `layer_{i}.safetensors`, one transcoder for each layer of the model.

W_enc [F, d] (transposed against SAELens), W_dec [F, d], b_enc, b_dec, W_skip [d, d] (ŷ += x·W_skipᵀ),
activation_function.threshold [F]. The set covers the layers 0 … n − 1 without a gap, at one width F, with one pair of
hooks. `activation: topk` with `k` stands in config.yaml: circuit-tracer's repository reads it, the release 0.5.0 on the
package index does not and would apply a ReLU. Its TopK has no ReLU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...shared.cache.files import write_file
from ...shared.config.yaml import MOST_BYTES, dump_yaml, load_yaml
from ...shared.errors import DataError, PipelineError, UsageError
from ..facts import Facts
from ..hooks import Reading, from_tl, layer_of, model_type_of, tl_hook
from ..plain import Above, Activation, KLargest, Plain, Relu
from .base import Format, Options, Part, Written, read_tensors, shaped, write_tensors

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"


class CircuitTracer(Format):
    """A transcoder set of circuit-tracer."""

    name: ClassVar[str] = "circuit-tracer"
    tool: ClassVar[str] = "circuit-tracer"
    many: ClassVar[bool] = True

    def known(self, plain: Plain, options: Options) -> tuple[type, ...]:
        if plain.tied:
            raise UsageError("circuit-tracer replaces MLPs by transcoders, this coder is an SAE", "--to saelens")
        if plain.d_in != plain.d_out:
            raise UsageError(f"circuit-tracer has one width, found {plain.d_in} and {plain.d_out}", "--to saelens")
        return (Above, Relu) if options.threshold else (KLargest, Above, Relu)

    def write(self, parts: Sequence[Part], folder: Path, options: Options) -> Written:
        by_layer = _by_layer(parts)
        first = parts[0]
        _alike(parts)
        total = max(by_layer) + 1 if options.layers is None else options.layers
        missing = sorted(set(range(total)) - set(by_layer))
        if max(by_layer) >= total:
            raise UsageError(
                f"--layers {total}: a run is of layer {max(by_layer)}", "the number of layers of the model"
            )
        if missing and options.layers is None:
            raise UsageError(
                f"circuit-tracer requires a transcoder for every layer from 0 on; missing: {_listed(missing)}",
                f"give a run for each, or --layers N (the layers of the model, at least {total}) fills the rest with "
                "transcoders without latents: their MLPs become error nodes of the graph",
            )
        for layer in range(total):
            plain = by_layer[layer].plain if layer in by_layer else _empty(first.plain)
            _write_layer(folder / f"layer_{layer}.safetensors", plain)
        config = _config(first, [f"layer_{layer}.safetensors" for layer in range(total)])
        write_file(folder / CONFIG, [dump_yaml(config).encode()])
        notes = _notes(first, missing)
        return Written(notes, _load_line(total), {"layers": total, "empty_layers": missing})

    def locate(self, folder: Path, part: Part) -> Path:
        return folder / f"layer_{layer_of(part.facts.target)}.safetensors"

    def recognises(self, path: Path) -> bool:
        if path.suffix == ".safetensors" and re.fullmatch(r"layer_\d+\.safetensors", path.name):
            return (path.parent / CONFIG).is_file()
        if not (path / CONFIG).is_file():
            return False
        with (path / CONFIG).open("rb") as file:
            return b"model_kind" in file.read(MOST_BYTES)

    def read(self, path: Path, layer: int | None = None) -> list[Part]:
        if path.is_file():
            layer, path = int(re.findall(r"\d+", path.name)[-1]), path.parent
        config = load_yaml(path / CONFIG)
        if config.get("model_kind") != "transcoder_set":
            raise DataError(
                f"{path / CONFIG}: model_kind is {config.get('model_kind')!r}, only transcoder_set is read: a "
                "cross-layer transcoder writes to many layers, a coder here to one site"
            )
        files = _files(path, config)
        if layer is not None and layer not in files:
            raise DataError(
                f"{path} has no layer {layer}, only {_listed(sorted(files))}", "--layer chooses one of them"
            )
        wanted = sorted(files) if layer is None else [layer]
        parts = [_read_layer(files[one], one, config, path) for one in wanted]
        if layer is None:
            parts = [part for part in parts if bool((part.plain.w_dec != 0).any())]
        return parts


def _by_layer(parts: Sequence[Part]) -> dict[int, Part]:
    found: dict[int, Part] = {}
    for part in parts:
        layer = layer_of(part.facts.target)
        if layer is None:
            raise UsageError(f"{part.facts.name}: its target {part.facts.target} belongs to no layer")
        if layer in found:
            raise UsageError(f"{found[layer].facts.name} and {part.facts.name} are both of layer {layer}")
        if layer_of(part.facts.source) != layer:
            raise UsageError(
                f"{part.facts.name} reads {part.facts.source} and writes {part.facts.target}: circuit-tracer's "
                "transcoders stay in one layer"
            )
        found[layer] = part
    return found


def _alike(parts: Sequence[Part]) -> None:
    """Raises UsageError where the coders cannot share one config.yaml."""
    kinds = {
        part.facts.name: (
            part.plain.n_latents, part.plain.d_in, part.plain.w_skip is not None, type(part.plain.activation).__name__,
            part.plain.activation.k if isinstance(part.plain.activation, KLargest) else None, *_hooks(part),
        )
        for part in parts
    }  # fmt: skip
    if len(set(kinds.values())) > 1:
        listed = "; ".join(
            f"{name}: {k[0]:,} latents, width {k[1]}, {'skip' if k[2] else 'no skip'}, "
            f"{k[3]}{'' if k[4] is None else f' k={k[4]}'}, {k[5]} → {k[6]}"
            for name, k in kinds.items()
        )
        raise UsageError(
            f"a transcoder set has one size, activation, k and pair of hooks: {listed}",
            "--threshold writes different k as thresholds; other differences need sets of their own",
        )


def _hooks(part: Part) -> tuple[str, str]:
    """The feature hooks below `blocks.L.`."""
    source = tl_hook(part.facts.source, part.plain.rms)
    target = tl_hook(part.facts.target)
    return source.split(".", 2)[2], target.split(".", 2)[2]


def _empty(like: Plain) -> Plain:
    """A transcoder without latents of the same size: the layer's MLP is one error node."""
    act: Activation = like.activation
    if isinstance(act, Above):
        act = Above(torch.zeros_like(act.theta))
    return replace(
        like,
        w_enc=torch.zeros_like(like.w_enc),
        b_enc=torch.zeros_like(like.b_enc),
        w_dec=torch.zeros_like(like.w_dec),
        b_dec=torch.zeros_like(like.b_dec),
        w_skip=None if like.w_skip is None else torch.zeros_like(like.w_skip),
        activation=act,
    )


def _write_layer(path: Path, plain: Plain) -> None:
    act = plain.activation
    write_tensors(
        path,
        {
            "W_enc": plain.w_enc,
            "W_dec": plain.w_dec,
            "b_enc": plain.b_enc,
            "b_dec": plain.b_dec,
            "W_skip": plain.w_skip,
            THRESHOLD: act.theta if isinstance(act, Above) else None,
        },
    )


def _config(part: Part, files: list[str]) -> dict[str, Any]:
    source, target = _hooks(part)
    act = part.plain.activation
    activation: dict[str, Any] = {}
    if isinstance(act, KLargest):
        activation = {"activation": "topk", "k": act.k}
    elif isinstance(act, Relu):
        activation = {"activation": "relu"}
    return {
        "model_name": part.facts.model,
        "model_kind": "transcoder_set",
        "feature_input_hook": source,
        "feature_output_hook": target,
        **activation,
        "scan": part.facts.name,
        "transcoders": files,
    }


def _notes(part: Part, missing: list[int]) -> tuple[str, ...]:
    notes = ["circuit-tracer zeroes the latents at position 0, of Gemma-3 IT models at the first four positions"]
    if isinstance(part.plain.activation, KLargest):
        notes.append(
            "activation: topk is read by circuit-tracer's repository; the release 0.5.0 ignores it and applies a ReLU: "
            "for that release export with --threshold"
        )
    if missing:
        notes.append(f"layers without a run have no latents, their MLPs are error nodes: {_listed(missing)}")
    return tuple(notes)


def _load_line(total: int) -> str:
    files = f'{{i: f"FOLDER/layer_{{i}}.safetensors" for i in range({total})}}'
    return f"load_transcoder_set({files}, **hooks)  # scan and both feature hooks of config.yaml"


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _files(path: Path, config: dict[str, Any]) -> dict[int, Path]:
    """Layer → file."""
    if not config.get("transcoders"):
        return {int(re.findall(r"\d+", file.name)[-1]): file for file in sorted(path.glob("layer_*.safetensors"))}
    found = {}
    for layer, name in enumerate(config["transcoders"]):
        if str(name).startswith("hf://"):
            from ..hub import local_file

            found[layer] = local_file(str(name))
        else:
            found[layer] = path / str(name)
    return found


def _read_layer(file: Path, layer: int, config: dict[str, Any], path: Path) -> Part:
    where = str(path / CONFIG)
    try:
        hooks = [f"blocks.{layer}.{config[key]}" for key in ("feature_input_hook", "feature_output_hook")]
    except KeyError as error:
        raise DataError(f"{where} has no {error.args[0]}") from None
    model = config.get("model_name")
    source, target, problem = Reading(""), Reading(""), None
    try:
        source, target = (from_tl(hook, model, where) for hook in hooks)
    except DataError as error:
        problem = error.message
    found = read_tensors(file, ["W_enc", "W_dec", "b_enc", "b_dec"])
    plain = Plain(
        found["W_enc"],
        found["b_enc"],
        found["W_dec"],
        found["b_dec"],
        found.get("W_skip"),
        _activation(found, config, file),
        rms=source.rms,
        tied=False,
    )
    facts = Facts(
        source.site,
        target.site,
        model=model,
        family=model_type_of(model),
        name=f"{path.name}-layer_{layer:02d}",
        problem=problem,
    )
    return Part(shaped(plain, file), facts)


def _activation(found: dict[str, torch.Tensor], config: dict[str, Any], file: Path) -> Activation:
    kind = config.get("activation")
    if kind == "topk":
        if not isinstance(config.get("k"), int):
            raise PipelineError(
                f"{file.parent / CONFIG}: activation topk needs an integer k, found {config.get('k')!r}"
            )
        return KLargest(config["k"], signed=True)
    if kind == "relu" or THRESHOLD not in found:
        return Relu()
    if bool((found[THRESHOLD] < 0).any()):
        raise DataError(f"{file}: negative thresholds give negative codes, which no coder here has")
    return Above(found[THRESHOLD])
