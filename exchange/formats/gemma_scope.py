"""Gemma Scope: version 1, `params.npz`; version 2, `params.safetensors` and `config.json`. JumpReLU, raw activations.

Version 1: W_enc [d, F], b_enc, W_dec [F, d], b_dec, threshold [F]; the sites stand in the repository's name
(`…-pt-res`, `-mlp`, `-att`, `-transcoders`) and the layer in the path, `layer_20/width_16k/average_l0_71`. Its
transcoders read resid_mid divided by its root mean square, *without* the norm's gain.

Version 2: w_enc [d, F], b_enc, w_dec [F, d], b_dec, threshold [F], affine_skip_connection [d_in, d_out] (ŷ += x·A: the
transpose of every other skip matrix here). config.json names the hook points as `transformers` has them; those of the
transcoders are the norm's output *with* its gain, and attn_out is the input of W_O.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...models.site_names import format_site
from ...shared.archives import load_arrays
from ...shared.cache.files import write_file
from ...shared.errors import DataError, UsageError
from ...shared.untrusted import read_object
from ..facts import Facts
from ..hooks import from_hf, layer_of, model_type_of, to_hf
from ..plain import Above, Plain
from .base import (
    Format,
    Options,
    Part,
    Written,
    checked,
    only_sae,
    read_tensors,
    shaped,
    single,
    write_document,
    write_tensors,
)

NPZ = "params.npz"
SAFETENSORS = "params.safetensors"
CONFIG = "config.json"

_REQUIRED_1 = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_REQUIRED_2 = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")

_SITES_1 = {"res": "resid_post", "mlp": "mlp_out"}
"""Last part of a version-1 repository's name → kind of site; att and transcoders have rules of their own."""


class GemmaScope(Format):
    """Gemma Scope 1 and 2."""

    name: ClassVar[str] = "gemma-scope"
    tool: ClassVar[str] = "Gemma Scope loaders (SAELens, circuit-tracer, delphi)"

    def known(self, plain: Plain, options: Options) -> tuple[type, ...]:
        if options.version == 1 and plain.w_skip is not None:
            only_sae(plain, "version 1 of Gemma Scope")
        return (Above,)

    def write(self, parts: Sequence[Part], folder: Path, options: Options) -> Written:
        (part,) = parts
        plain, act = part.plain, part.plain.activation
        assert isinstance(act, Above)
        if options.version == 1:
            arrays = {
                "W_enc": plain.w_enc.T, "b_enc": plain.b_enc, "W_dec": plain.w_dec, "b_dec": plain.b_dec,
                "threshold": act.theta,
            }  # fmt: skip
            buffer = io.BytesIO()
            plain_arrays: dict[str, Any] = {name: single(value).numpy() for name, value in arrays.items()}
            np.savez(buffer, **plain_arrays)
            write_file(folder / NPZ, [buffer.getvalue()])
            load = f'numpy.load("FOLDER/{NPZ}")'
        else:
            skip = None if plain.w_skip is None else plain.w_skip.T
            tensors: dict[str, Tensor | None] = {
                "w_enc": plain.w_enc.T, "b_enc": plain.b_enc, "w_dec": plain.w_dec, "b_dec": plain.b_dec,
                "threshold": act.theta, "affine_skip_connection": skip,
            }  # fmt: skip
            write_tensors(folder / SAFETENSORS, tensors)
            load = f'safetensors.torch.load_file("FOLDER/{SAFETENSORS}")'
        write_document(folder / CONFIG, _document(part))
        return Written(_notes(part, options.version), load, {"layout": options.version})

    def recognises(self, path: Path) -> bool:
        if path.is_file():
            return path.suffix == ".npz"
        return (path / NPZ).is_file() or ((path / SAFETENSORS).is_file() and (path / CONFIG).is_file())

    def read(self, path: Path, layer: int | None = None) -> list[Part]:
        folder = path.parent if path.is_file() else path
        config = _config(folder / CONFIG)
        if path.is_file() or (path / NPZ).is_file():
            return [_read_1(path if path.is_file() else path / NPZ, config)]
        return [_read_2(path, config)]


def _document(part: Part) -> dict[str, Any]:
    """config.json of version 2, with our names of the sites beside theirs."""
    facts, plain = part.facts, part.plain
    transcoder = not plain.tied or plain.w_skip is not None
    source, target = (to_hf(site, facts.family) for site in (facts.source, facts.target))
    return {
        "architecture": "jump_relu",
        "model_name": facts.model,
        "type": "transcoder" if transcoder else "sae",
        "width": plain.n_latents,
        "l0": facts.summary.get("l0"),
        "affine_connection": plain.w_skip is not None,
        "hf_hook_point_in": None if plain.rms else source,
        "hf_hook_point_out": target,
        "source": facts.source,
        "target": facts.target,
        "input": "rms" if plain.rms else "raw",
        "tied": plain.tied,
    }


def _notes(part: Part, version: int) -> tuple[str, ...]:
    notes = []
    if part.plain.rms and version == 2:
        notes.append("version 2 has no name for an input without the norm's gain: hf_hook_point_in is null")
    if part.plain.w_skip is not None:
        notes.append("affine_skip_connection is [d_in, d_out]: ŷ += x·A")
    layer = layer_of(part.facts.target)
    if version == 1:
        notes.append(f"published version-1 coders lie in layer_{layer}/width_…/average_l0_…/{NPZ}")
    return tuple(notes)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read_object(path)
    if found.get("architecture", "jump_relu") != "jump_relu":
        raise DataError(f"{path}: architecture {found['architecture']!r} is not read (read: jump_relu)")
    return found


def _read_1(file: Path, config: dict[str, Any]) -> Part:
    arrays = load_arrays(file)
    if wrong := [name for name, array in arrays.items() if array.dtype.kind not in "fiub"]:
        raise DataError(f"{file}: {wrong[0]} holds {arrays[wrong[0]].dtype}, expected numbers")
    found = checked({name: torch.from_numpy(array) for name, array in arrays.items()}, _REQUIRED_1, file)
    source, target, rms, problem = _sites_1(file, config)
    act = Above(found["threshold"].clamp_min(0))  # a ReLU stands before it
    plain = Plain(
        found["W_enc"].T, found["b_enc"], found["W_dec"], found["b_dec"], None, act,
        rms=rms, tied=config.get("tied", source == target),
    )  # fmt: skip
    model = config.get("model_name") or _model_1(file)
    name = "-".join(part for part in file.parent.parts[-3:] if part.startswith(("layer", "width", "average")))
    facts = Facts(
        source, target, model=model, family=model_type_of(model), name=name or file.parent.name, problem=problem
    )
    return Part(shaped(plain, file), facts)


def _sites_1(file: Path, config: dict[str, Any]) -> tuple[str, str, bool, str | None]:
    """(source, target, input without gain, why they are not known)."""
    if "source" in config and "target" in config:  # one of our exports
        return config["source"], config["target"], config.get("input") == "rms", None
    layers = re.findall(r"layer_(\d+)", str(file))
    kinds = re.findall(r"gemma-scope-[\w.]+-(?:pt|it)-(\w+)", str(file))
    if not layers or not kinds:
        return "", "", False, f"the path of {file.name} names no layer or no repository (gemma-scope-…-res)"
    layer, kind = int(layers[-1]), kinds[-1]
    if kind == "transcoders":
        return format_site(layer, "resid_mid"), format_site(layer, "mlp_out"), True, None
    if kind == "att":
        site = format_site(layer, "attn_z")
        return site, site, False, None
    if kind not in _SITES_1:
        return "", "", False, f"repository gemma-scope-…-{kind} is not known"
    return (site := format_site(layer, _SITES_1[kind])), site, False, None


def _model_1(file: Path) -> str | None:
    match = re.search(r"gemma-scope-(\d+b)-(pt|it)-", str(file))
    return None if match is None else f"google/gemma-2-{match[1]}{'-it' if match[2] == 'it' else ''}"


def _read_2(path: Path, config: dict[str, Any]) -> Part:
    affine = bool(config.get("affine_connection", False))
    found = read_tensors(path / SAFETENSORS, [*_REQUIRED_2, *(["affine_skip_connection"] if affine else [])])
    skip = found.get("affine_skip_connection")
    if found["w_dec"].dim() != 2:
        raise DataError(f"{path}: a cross-layer transcoder writes to many layers, a coder here to one site")
    source, target, rms, problem = _sites_2(path, config)
    plain = Plain(
        found["w_enc"].T, found["b_enc"], found["w_dec"], found["b_dec"], None if skip is None else skip.T,
        Above(found["threshold"].clamp_min(0)), rms=rms, tied=config.get("tied", source == target),
    )  # fmt: skip
    model = config.get("model_name")
    facts = Facts(source, target, model=model, family=model_type_of(model), name=path.name, problem=problem)
    return Part(shaped(plain, path), facts)


def _sites_2(path: Path, config: dict[str, Any]) -> tuple[str, str, bool, str | None]:
    """(source, target, input without gain, why they are not known), from the hook points alone."""
    if "source" in config and "target" in config:
        return config["source"], config["target"], config.get("input") == "rms", None
    model, where = config.get("model_name"), str(path / CONFIG)
    read, written = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if not read:
        return "", "", False, f"{where} names no hf_hook_point_in"
    try:
        source = from_hf(str(read), model, where).site
        target = from_hf(str(written), model, where).site if written else source
    except (DataError, UsageError) as error:
        return "", "", False, error.message
    return source, target, False, None
