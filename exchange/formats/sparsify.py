"""sparsify (EleutherAI): `HOOKPOINT/cfg.json` and `HOOKPOINT/sae.safetensors`, for SparseCoder.load_from_disk.

encoder.weight [F, d], encoder.bias [F], W_dec [F, d], b_dec [d], W_skip [d, d]. An SAE reads x − b_dec, a transcoder
(`transcode`) reads x. The skip connection always reads x. Every coder keeps k latents a row: ReLU is k = F. A hookpoint
is a module path: an SAE reads the module's output, a transcoder its input, and writes its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...shared.errors import DataError, UsageError
from ...shared.untrusted import read_object
from ..facts import Facts
from ..hooks import from_module, is_module_path, model_type_of, module_of
from ..plain import KLargest, Plain
from .base import Format, Options, Part, Written, read_tensors, shaped, write_document, write_tensors

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"


class Sparsify(Format):
    """sparsify; the folder holds one folder per hookpoint."""

    name: ClassVar[str] = "sparsify"
    tool: ClassVar[str] = "sparsify"
    many: ClassVar[bool] = True

    def known(self, plain: Plain, options: Options) -> tuple[type, ...]:
        if plain.d_in != plain.d_out:
            raise UsageError(f"sparsify has one width, found {plain.d_in} and {plain.d_out}", "--to saelens")
        return (KLargest,)

    def write(self, parts: Sequence[Part], folder: Path, options: Options) -> Written:
        notes: list[str] = []
        names = [hookpoint(part, notes) for part in parts]
        if len(set(names)) < len(names):
            raise UsageError(
                f"several runs at one hookpoint: {', '.join(names)}", "export them into folders of their own"
            )
        for name, part in zip(names, parts, strict=True):
            self.write_one(part, folder / name)
        load = f'SparseCoder.load_from_disk("FOLDER/{names[0]}")'
        return Written(tuple(dict.fromkeys(notes)), load, {"hookpoints": names})

    def write_one(self, part: Part, folder: Path) -> None:
        """One hookpoint's folder."""
        plain, act = part.plain, part.plain.activation
        assert isinstance(act, KLargest)
        transcode = not plain.tied or plain.w_skip is not None
        # An SAE subtracts b_dec from its input: its bias gives that back
        b_enc = plain.b_enc if transcode else plain.b_enc + plain.w_enc @ plain.b_dec
        write_tensors(
            folder / WEIGHTS,
            {
                "encoder.weight": plain.w_enc,
                "encoder.bias": b_enc,
                "W_dec": plain.w_dec,
                "b_dec": plain.b_dec,
                "W_skip": plain.w_skip,
            },
        )
        write_document(
            folder / CONFIG,
            {
                "activation": "topk",
                "expansion_factor": max(1, plain.n_latents // plain.d_in),
                "normalize_decoder": False,
                "num_latents": plain.n_latents,
                "k": act.k,
                "multi_topk": False,
                "skip_connection": plain.w_skip is not None,
                "transcode": transcode,
                "d_in": plain.d_in,
                "hookpoint": folder.name,
                "model_name": part.facts.model,
                "source": part.facts.source,
                "target": part.facts.target,
                "input": "rms" if plain.rms else "raw",
            },
        )

    def locate(self, folder: Path, part: Part) -> Path:
        return folder / hookpoint(part, [])

    def recognises(self, path: Path) -> bool:
        return ((path / CONFIG).is_file() and (path / WEIGHTS).is_file()) or bool(_folders(path))

    def read(self, path: Path, layer: int | None = None) -> list[Part]:
        if (path / WEIGHTS).is_file():
            return [_read(path)]
        return [_read(folder) for folder in _folders(path)]


def _folders(path: Path) -> list[Path]:
    return sorted(file.parent for file in path.glob(f"*/{WEIGHTS}") if (file.parent / CONFIG).is_file())


def hookpoint(part: Part, notes: list[str]) -> str:
    """The folder's name: the module that sparsify hooks, or our names of the sites where it hooks none."""
    facts, plain = part.facts, part.plain
    source, target = (module_of(site, facts.family) for site in (facts.source, facts.target))
    if plain.rms:
        notes.append("sparsify divides no input by its root mean square: give it x / sqrt(mean(x²) + 1e-6)")
    elif plain.tied and source is not None and source[1] == "out":
        return source[0].removeprefix("model.")
    elif not plain.tied and source is not None and target is not None:
        read = _read_by(source)
        if read == target[0] and target[1] == "out":
            return target[0].removeprefix("model.")
        notes.append(
            f"no module reads {facts.source} and writes {facts.target}: sparsify's hooks do not reach this pair"
        )
    else:
        notes.append(f"{facts.source} is no module's output: sparsify's hooks do not reach it")
    return facts.source if plain.tied else f"{facts.source}-to-{facts.target}"


def _read_by(source: tuple[str, str]) -> str | None:
    """The module whose input a place is, if it is an MLP's or an attention's."""
    path, io = source
    if io == "in":
        return path
    layer, _, module = path.rpartition(".")
    return f"{layer}.mlp" if module in ("post_attention_layernorm", "pre_feedforward_layernorm", "ln_2") else None


def _read(path: Path) -> Part:
    where = path / CONFIG
    try:
        config = read_object(where)
        k, d_in, transcode = int(config["k"]), int(config["d_in"]), bool(config.get("transcode", False))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{where} cannot be read: {error!r}") from None
    if config.get("activation", "topk") != "topk":
        raise DataError(f"{where}: activation {config['activation']!r} is not read (read: topk)")
    required = ["encoder.weight", "encoder.bias", "W_dec", "b_dec"]
    found = read_tensors(path / WEIGHTS, required + ["W_skip"] * bool(config.get("skip_connection")))
    w_enc, b_enc, b_dec = found["encoder.weight"], found["encoder.bias"], found["b_dec"]
    if w_enc.shape[1] != d_in:
        raise DataError(f"{where}: d_in is {d_in}, but encoder.weight has {list(w_enc.shape)}")
    if not transcode:
        b_enc = (b_enc.double() - w_enc.double() @ b_dec.double()).to(torch.float32)
    facts = _facts(config, path, transcode)
    tied = not transcode or (facts.source == facts.target)
    plain = Plain(
        w_enc, b_enc, found["W_dec"], b_dec, found.get("W_skip"), KLargest(k),
        rms=config.get("input") == "rms", tied=tied,
    )  # fmt: skip
    return Part(shaped(plain, path), facts)


def _facts(config: dict[str, Any], path: Path, transcode: bool) -> Facts:
    model = config.get("model_name")
    family = model_type_of(model)
    if "source" in config and "target" in config:  # one of our exports
        return Facts(config["source"], config["target"], model=model, family=family, name=path.name)
    module = path.name if path.name.startswith(("model.", "transformer.", "gpt_neox.")) else f"model.{path.name}"
    if family is None and path.name.startswith("h."):
        module = f"transformer.{path.name}"
    if not is_module_path(module):
        problem = f"the folder's name {path.name!r} is not the path of a module"
        return Facts("", "", model=model, family=family, name=path.name, problem=problem)
    target = from_module(module, "out", family)
    source = _input_of(module, family) if transcode else target
    return Facts(source, target, model=model, family=family, name=path.name)


def _input_of(module: str, family: str | None) -> str:
    """The site of what a module reads: of an MLP, what its norm gives."""
    layer, _, name = module.rpartition(".")
    if name == "mlp" and family is not None:
        known = module_of(f"layer_{int(layer.rpartition('.')[2]):02d}.mlp_in", family)
        if known is not None:
            return from_module(*known, family)
    return f"{module}:in"
