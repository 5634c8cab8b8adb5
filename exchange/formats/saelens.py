"""SAELens 6: a folder with cfg.json and sae_weights.safetensors, for SAE.load_from_disk.

W_enc [d_in, F], b_enc [F], W_dec [F, d_out], b_dec [d_out]; threshold [F]; b_gate, r_mag, b_mag [F];
W_skip [d_out, d_in].
SAEs: standard, topk, jumprelu, gated. Transcoders: ReLU and JumpReLU, each also with a skip connection; none with TopK.
Written with `apply_b_dec_to_input: false`, so that b_dec is only added to the output. Read with either; also the
settings of versions before 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...shared.errors import DataError, UsageError
from ...shared.untrusted import read_object
from ..facts import Facts
from ..hooks import Reading, from_hf, from_tl, model_type_of, tl_hook, to_hf
from ..plain import Above, Activation, Gate, KLargest, Plain, Relu
from .base import ALL, Format, Options, Part, Written, read_tensors, shaped, write_document, write_tensors

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"

VERSION = "6.54.12"
"""The version whose layout is written; from 6 on the metadata are a mapping of their own."""

_SAE = {KLargest: "topk", Above: "jumprelu", Relu: "standard", Gate: "gated"}
_TRANSCODER = {
    (Relu, False): "transcoder",
    (Relu, True): "skip_transcoder",
    (Above, False): "jumprelu_transcoder",
    (Above, True): "jumprelu_skip_transcoder",
}
_READ = {*_SAE.values(), *_TRANSCODER.values()}

_NORMALISED = ("layer_norm", "constant_norm_rescale", "covariance_whitening")
"""Normalisations that SAELens computes from each row, or keeps outside the weights."""


class SaeLens(Format):
    """SAELens."""

    name: ClassVar[str] = "saelens"
    tool: ClassVar[str] = "SAELens"

    def known(self, plain: Plain, options: Options) -> tuple[type, ...]:
        if not plain.tied or plain.w_skip is not None:
            return (Relu, Above)
        return (Above, Relu, Gate) if options.threshold else ALL

    def write(self, parts: Sequence[Part], folder: Path, options: Options) -> Written:
        (part,) = parts
        plain, act = part.plain, part.plain.activation
        transcoder = not plain.tied or plain.w_skip is not None
        tensors: dict[str, Tensor | None] = {"W_enc": plain.w_enc.T, "W_dec": plain.w_dec, "b_dec": plain.b_dec}
        document: dict[str, Any] = {
            "architecture": _TRANSCODER[type(act), plain.w_skip is not None] if transcoder else _SAE[type(act)],
            "d_in": plain.d_in,
            "d_sae": plain.n_latents,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
        }
        if isinstance(act, Gate):
            tensors |= {"b_gate": plain.b_enc, "r_mag": act.log_scale, "b_mag": act.b_mag}
        else:
            tensors["b_enc"] = plain.b_enc
        if isinstance(act, Above):
            tensors["threshold"] = act.theta
        if isinstance(act, KLargest):
            document |= {"k": act.k, "rescale_acts_by_decoder_norm": False}
        if transcoder:
            document["d_out"] = plain.d_out
            tensors["W_skip"] = plain.w_skip
        metadata, notes = _metadata(part)
        write_tensors(folder / WEIGHTS, tensors)
        write_document(folder / CONFIG, {**document, "metadata": metadata})
        return Written(notes, 'SAE.load_from_disk("FOLDER")', {"architecture": document["architecture"]})

    def recognises(self, path: Path) -> bool:
        return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()

    def read(self, path: Path, layer: int | None = None) -> list[Part]:
        config = _config(path / CONFIG)
        architecture = _architecture(config, path)
        gated, threshold = architecture == "gated", "jumprelu" in architecture
        skip = "skip" in architecture
        found = read_tensors(
            path / WEIGHTS,
            ["W_enc", "W_dec", "b_dec", *(["b_gate", "r_mag", "b_mag"] if gated else ["b_enc"])]
            + ["threshold"] * threshold
            + ["W_skip"] * skip,
        )
        w_enc, w_dec = found["W_enc"].T, found["W_dec"]
        act: Activation = Relu()
        if architecture == "topk":
            act = KLargest(_k(config, path))
            if config.get("rescale_acts_by_decoder_norm"):  # it selects by the code times the row's length
                norms = w_dec.double().norm(dim=1)
                w_enc, w_dec = w_enc.double() * norms[:, None], w_dec.double() / norms[:, None]
                found["b_enc"] = found["b_enc"].double() * norms
        elif threshold:
            act = Above(found["threshold"].clamp_min(0))  # a ReLU stands before it
        elif gated:
            act = Gate(found["r_mag"], found["b_mag"])
        tied = "transcoder" not in architecture
        plain = Plain(
            w_enc, found["b_gate" if gated else "b_enc"], w_dec, found["b_dec"], found.get("W_skip"), act, tied=tied
        )
        if tied and config.get("apply_b_dec_to_input", True):
            plain = _input_bias_folded(plain)
        facts, rms = _facts(config, path, tied)
        plain = Plain(**{**vars(plain.to(torch.float32)), "rms": rms})
        return [Part(shaped(plain, path), facts)]


def _metadata(part: Part) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The metadata mapping, and notes on what SAELens cannot hook."""
    facts, rms, notes = part.facts, part.plain.rms, []
    hooks: dict[str, str | None] = {}
    for key, site, normalised in (("hook_name", facts.source, rms), ("hook_name_out", facts.target, False)):
        try:
            hooks[key] = tl_hook(site, normalised)
        except UsageError as error:
            hooks[key] = site
            notes.append(f"{key} is our name of the site: {error.message}")
        hooks[key.replace("hook_", "hf_hook_")] = to_hf(site, facts.family)
    if part.plain.tied:
        hooks = {key: value for key, value in hooks.items() if not key.endswith("_out")}
    return {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": facts.model,
        "hook_head_index": None,
        "context_size": facts.context,
        "prepend_bos": facts.prepend_bos,
        "dataset_path": facts.dataset,
        **{key: value for key, value in hooks.items() if value is not None},
    }, tuple(notes)


def _config(path: Path) -> dict[str, Any]:
    """cfg.json with the metadata's keys and, of older versions, the newer names."""
    config = read_object(path)
    renamed = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    flat = {renamed.get(key, key): value for key, value in config.items() if key != "metadata"}
    metadata: Mapping[str, Any] = config.get("metadata") or {}
    return {**flat, **{key: value for key, value in metadata.items() if value is not None}}


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    name = str(config.get("architecture", "standard"))
    if name == "standard" and config.get("activation_fn") == "topk":
        name = "topk"
    if name not in _READ:
        raise DataError(f"{path}: SAELens architecture {name!r} is not read (read: {', '.join(sorted(_READ))})")
    normalised = config.get("normalize_activations") or "none"
    if normalised in _NORMALISED:
        raise DataError(
            f"{path}: normalize_activations is {normalised!r}, which the weights alone do not contain",
            "fold it in SAELens (sae.fold_activation_norm_scaling_factor) and save again",
        )
    if config.get("finetuning_scaling_factor"):
        raise DataError(f"{path}: finetuning_scaling_factor is not read")
    return name


def _k(config: Mapping[str, Any], path: Path) -> int:
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if not isinstance(k, int):
        raise DataError(f"{path / CONFIG}: a topk coder has an integer k, found {k!r}")
    return k


def _input_bias_folded(plain: Plain) -> Plain:
    """A coder that reads x − b_dec, as one that reads x."""
    wide = plain.to(torch.float64)
    shift = wide.w_enc @ wide.b_dec
    act = wide.activation
    if isinstance(act, Gate):
        act = Gate(act.log_scale, act.b_mag - act.log_scale.exp() * shift)
    return Plain(**{**vars(wide), "b_enc": wide.b_enc - shift, "activation": act})


def _facts(config: Mapping[str, Any], path: Path, tied: bool) -> tuple[Facts, bool]:
    """(where it belongs, whether its input is divided by the root mean square)."""
    model = config.get("model_name")
    source = target = ""
    rms, problem = False, None
    try:
        source, target, rms = _sites(config, path, tied)
    except DataError as error:
        problem = error.message
    return Facts(
        source,
        target,
        model=model,
        family=model_type_of(model),
        context=config.get("context_size"),
        prepend_bos=config.get("prepend_bos"),
        dataset=config.get("dataset_path"),
        name=path.name,
        problem=problem,
    ), rms


def _sites(config: Mapping[str, Any], path: Path, tied: bool) -> tuple[str, str, bool]:
    """Source, target, and whether the input is divided by its root mean square. Raises DataError where not known."""
    model, where = config.get("model_name"), str(path / CONFIG)

    def reading(tl: str, hf: str) -> Reading | None:
        if config.get(hf):  # the module path counts: exchange/hooks.py
            return from_hf(str(config[hf]), model, where)
        return from_tl(str(config[tl]), model, where) if config.get(tl) else None

    source = reading("hook_name", "hf_hook_name")
    rms = str(config.get("hook_name", "")).endswith("hook_normalized")
    if rms:  # the root mean square has no module of its own
        source = from_tl(str(config["hook_name"]), model, where)
    if source is None:
        raise DataError(f"{where} names no hook", "--source SITE --target SITE")
    target = source if tied else reading("hook_name_out", "hf_hook_name_out")
    if target is None:
        raise DataError(f"{where}: a transcoder needs hook_name_out", "pipeline import PATH --target SITE")
    return source.site, target.site, rms
