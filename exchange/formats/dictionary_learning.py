"""dictionary_learning: `ae.pt`, a state dict, and `config.json`, for dictionary_learning.utils.load_dictionary.

AutoEncoderTopK and BatchTopKSAE: encoder.weight [F, d], encoder.bias, decoder.weight [d, F], b_dec, k, threshold.
MatryoshkaBatchTopKSAE: W_enc [d, F], b_enc, W_dec [F, d], b_dec, k, threshold, group_sizes. JumpReluAutoEncoder: W_enc,
b_enc, W_dec, b_dec, threshold [F]. GatedAutoEncoder: encoder.weight, r_mag, gate_bias, mag_bias, decoder.weight,
decoder_bias. AutoEncoderNew: encoder.*, decoder.*. AutoEncoder (read only): encoder.*, decoder.weight, bias.
All but JumpReluAutoEncoder and AutoEncoderNew read x minus their output bias.

`ae.pt` is written with tensors only, and read with `weights_only=True`, which constructs nothing else.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...shared.archives import load_plain
from ...shared.cache.files import write_file
from ...shared.errors import DataError
from ...shared.untrusted import read_object
from ..facts import Facts
from ..hooks import from_module, layer_of, model_type_of, module_of
from ..plain import Above, Gate, KLargest, Plain, Relu, is_uniform
from .base import ALL, Format, Options, Part, Written, checked, only_sae, shaped, single, write_document

CONFIG = "config.json"
WEIGHTS = "ae.pt"

TRAINERS = {
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
    "GatedAutoEncoder": "GatedSAETrainer",
    "AutoEncoderNew": "StandardTrainerAprilUpdate",
}
"""dict_class → the trainer_class that goes with it, by which SAEBench chooses a loader."""


class DictionaryLearning(Format):
    """dictionary_learning."""

    name: ClassVar[str] = "dictionary-learning"
    tool: ClassVar[str] = "dictionary_learning"

    def known(self, plain: Plain, options: Options) -> tuple[type, ...]:
        only_sae(plain, self.tool)
        return (Above, Relu, Gate) if options.threshold else ALL

    def write(self, parts: Sequence[Part], folder: Path, options: Options) -> Written:
        (part,) = parts
        kind, state = state_of(part.plain)
        buffer = io.BytesIO()
        torch.save(
            {name: value if not value.is_floating_point() else single(value) for name, value in state.items()}, buffer
        )
        write_file(folder / WEIGHTS, [buffer.getvalue()])
        write_document(folder / CONFIG, _document(part, kind))
        notes: list[str] = []
        if part.plain.rms:
            notes.append(
                "dictionary_learning divides no input by its root mean square: give it x / sqrt(mean(x²) + 1e-6)"
            )
        if part.plain.groups is not None and kind != "MatryoshkaBatchTopKSAE":
            notes.append(f"the groups of the nested dictionary are not in the file: {kind} has none")
        return Written(tuple(notes), 'load_dictionary("FOLDER", device="cpu")', {"dict_class": kind})

    def recognises(self, path: Path) -> bool:
        return (path / WEIGHTS).is_file()

    def read(self, path: Path, layer: int | None = None) -> list[Part]:
        trainer = _trainer(path)
        state = _load(path / WEIGHTS)
        kind = str(trainer.get("dict_class") or _class_of(state))
        if kind not in READERS:
            raise DataError(f"{path}: dict_class {kind!r} is not read (read: {', '.join(READERS)})")
        required, build = READERS[kind]
        plain = build(checked(state, required, path / WEIGHTS)).to(torch.float32)
        return [Part(shaped(plain, path), _facts(trainer, path))]


def state_of(plain: Plain) -> tuple[str, dict[str, Tensor]]:
    """(class, its state dict) of a coder; the weights are those of the class, which may read x − b_dec."""
    shifted = plain.b_enc + plain.w_enc @ plain.b_dec
    act = plain.activation
    linear = {"encoder.weight": plain.w_enc, "decoder.weight": plain.w_dec.T}
    if isinstance(act, KLargest):
        return "AutoEncoderTopK", {
            **linear, "encoder.bias": shifted, "b_dec": plain.b_dec,
            "k": torch.tensor(act.k, dtype=torch.int), "threshold": torch.tensor(-1.0),
        }  # fmt: skip
    if isinstance(act, Gate):
        magnitude = act.b_mag + act.log_scale.exp() * (plain.w_enc @ plain.b_dec)
        return "GatedAutoEncoder", {
            **linear, "r_mag": act.log_scale, "gate_bias": shifted, "mag_bias": magnitude, "decoder_bias": plain.b_dec
        }  # fmt: skip
    if isinstance(act, Relu):
        return "AutoEncoderNew", {**linear, "encoder.bias": plain.b_enc, "decoder.bias": plain.b_dec}
    if act.k is not None and is_uniform(act.theta):
        chosen = {"k": torch.tensor(act.k, dtype=torch.int), "threshold": act.theta[0]}
        if plain.groups is None:
            return "BatchTopKSAE", {**linear, "encoder.bias": shifted, "b_dec": plain.b_dec, **chosen}
        return "MatryoshkaBatchTopKSAE", {
            "W_enc": plain.w_enc.T, "b_enc": shifted, "W_dec": plain.w_dec, "b_dec": plain.b_dec,
            "group_sizes": torch.tensor(plain.groups), **chosen,
        }  # fmt: skip
    return "JumpReluAutoEncoder", {
        "W_enc": plain.w_enc.T, "b_enc": plain.b_enc, "W_dec": plain.w_dec, "b_dec": plain.b_dec, "threshold": act.theta
    }  # fmt: skip


def _document(part: Part, kind: str) -> dict[str, Any]:
    facts, plain, act = part.facts, part.plain, part.plain.activation
    k = act.k if isinstance(act, (KLargest, Above)) else None
    module = module_of(facts.source, facts.family)
    return {
        "trainer": {
            "trainer_class": TRAINERS[kind],
            "dict_class": kind,
            "activation_dim": plain.d_in,
            "dict_size": plain.n_latents,
            **({} if k is None else {"k": k}),
            "layer": layer_of(facts.source),
            "lm_name": facts.model,
            "submodule_name": facts.source if module is None else f"{module[0]}:{module[1]}",
            "site": facts.source,
            "input": "rms" if plain.rms else "raw",
            "device": "cpu",
        },
        "buffer": {"ctx_len": facts.context, "d_submodule": plain.d_in, "io": "out" if module is None else module[1]},
    }


def _trainer(path: Path) -> dict[str, Any]:
    where = path / CONFIG
    if not where.is_file():
        return {}
    trainer = read_object(where).get("trainer")
    if not isinstance(trainer, dict):
        raise DataError(f"{where} has no trainer")
    return trainer


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict; nothing but tensors is constructed."""
    found = load_plain(path)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{path} is not a state dict of tensors")
    return dict(found)


def _class_of(state: Mapping[str, Tensor]) -> str:
    """The class whose tensors these are, where config.json does not say."""
    for kind, (required, _) in READERS.items():
        if set(required) == set(state):
            return kind
    return "unknown, with " + ", ".join(sorted(state))


def _facts(trainer: Mapping[str, Any], path: Path) -> Facts:
    model = trainer.get("lm_name")
    family = model_type_of(model)
    site, problem = trainer.get("site"), None
    if site is None:
        name, layer = str(trainer.get("submodule_name") or ""), trainer.get("layer")
        if name.startswith(("model.", "transformer.", "gpt_neox.")):
            path_, _, io_ = name.partition(":")
            site = from_module(path_, io_ or "out", family)
        elif layer is not None:
            # the usual submodule: a whole layer, `resid_post_layer_8`
            kind = next((kind for kind in ("mlp_out", "attn_out", "resid_post") if kind in name), "resid_post")
            site = f"layer_{int(layer):02d}.{kind}"
        else:
            site, problem = "", f"{path / CONFIG} does not say what the coder reads"
    return Facts(site, site, model=model, family=family, name=path.name, problem=problem)


Tensors = Mapping[str, Tensor]


def _linear(t: Tensors, bias: str = "b_dec") -> dict[str, Any]:
    """The weights of a class with nn.Linear layers that reads x minus `bias`."""
    w_enc, b_dec = t["encoder.weight"].double(), t[bias].double()
    return {
        "w_enc": w_enc,
        "b_enc": t["encoder.bias"].double() - w_enc @ b_dec,
        "w_dec": t["decoder.weight"].T.double(),
        "b_dec": b_dec,
        "w_skip": None,
    }


def _topk(t: Tensors) -> Plain:
    return Plain(**_linear(t), activation=KLargest(int(t["k"])))


def _above(t: Tensors, n: int) -> Above | Relu:
    """BatchTopK at inference: above θ; a θ that was never set is negative, and then every positive code counts."""
    theta = float(t["threshold"])
    return Above(torch.full((n,), theta), k=int(t["k"])) if theta > 0 else Relu()


def _batchtopk(t: Tensors) -> Plain:
    return Plain(**_linear(t), activation=_above(t, t["encoder.weight"].shape[0]))


def _matryoshka(t: Tensors) -> Plain:
    w_enc, b_dec = t["W_enc"].T.double(), t["b_dec"].double()
    return Plain(
        w_enc, t["b_enc"].double() - w_enc @ b_dec, t["W_dec"], t["b_dec"], None, _above(t, w_enc.shape[0]),
        groups=tuple(int(size) for size in t["group_sizes"]),
    )  # fmt: skip


def _jumprelu(t: Tensors) -> Plain:
    theta = t["threshold"].clamp_min(0)  # a ReLU follows it
    return Plain(t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"], None, Above(theta))


def _gated(t: Tensors) -> Plain:
    w_enc, b_dec, r = t["encoder.weight"].double(), t["decoder_bias"].double(), t["r_mag"].double()
    shift = w_enc @ b_dec
    gate = Gate(r, t["mag_bias"].double() - r.exp() * shift)
    return Plain(w_enc, t["gate_bias"].double() - shift, t["decoder.weight"].T, b_dec, None, gate)


def _relu_new(t: Tensors) -> Plain:
    return Plain(t["encoder.weight"], t["encoder.bias"], t["decoder.weight"].T, t["decoder.bias"], None, Relu())


def _relu(t: Tensors) -> Plain:
    """AutoEncoder: its loader scales decoder rows to length 1 and the encoder by the same, so these are its codes."""
    weights = _linear(t, "bias")
    norms = weights["w_dec"].norm(dim=1)
    norms = torch.where(norms > 0, norms, torch.ones_like(norms))
    weights["w_dec"] = weights["w_dec"] / norms[:, None]
    weights["w_enc"] = weights["w_enc"] * norms[:, None]
    weights["b_enc"] = weights["b_enc"] * norms
    return Plain(**weights, activation=Relu())


_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
READERS: dict[str, tuple[tuple[str, ...], Callable[[Tensors], Plain]]] = {
    "AutoEncoderTopK": ((*_LINEAR, "b_dec", "k", "threshold"), _topk),
    "BatchTopKSAE": ((*_LINEAR, "b_dec", "k", "threshold"), _batchtopk),
    "MatryoshkaBatchTopKSAE": (("W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes"), _matryoshka),
    "JumpReluAutoEncoder": (("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), _jumprelu),
    "GatedAutoEncoder": (
        ("encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight", "decoder_bias"),
        _gated,
    ),
    "AutoEncoderNew": ((*_LINEAR, "decoder.bias"), _relu_new),
    "AutoEncoder": ((*_LINEAR, "bias"), _relu),
}
"""dict_class → (its tensors, how they are read)."""
