"""Plain safetensors: coder.safetensors and coder.json, weights on raw activations, for programs of any kind.

    w_enc [F, d_in]  b_enc [F]  w_dec [F, d_out]  b_dec [d_out]  w_skip [d_out, d_in]?
    threshold [F]? (log_threshold [F]? its logarithm)   gate_log_scale [F]? gate_b_mag [F]?

coder.json names the activation ({"kind": "topk", "k": 16}, "threshold", "relu" or "gated"), the input transform, the
sites and the model. docs/interop.md has the formulas. Reading it back gives the bits that were written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...shared.errors import DataError
from ...shared.untrusted import read_object
from ..facts import Facts
from ..plain import Above, Activation, Gate, KLargest, Plain, Relu
from .base import ALL, Format, Options, Part, Written, read_tensors, shaped, write_document, write_tensors

VERSION = 1
WEIGHTS = "coder.safetensors"
DOCUMENT = "coder.json"

FACTS = ("source", "target", "model", "family", "context", "prepend_bos", "dataset", "name")


class Safetensors(Format):
    """Our own plain form."""

    name: ClassVar[str] = "safetensors"
    tool: ClassVar[str] = "any program"

    def known(self, plain: Plain, options: Options) -> tuple[type, ...]:
        return tuple(kind for kind in ALL if kind is not KLargest) if options.threshold else ALL

    def write(self, parts: Sequence[Part], folder: Path, options: Options) -> Written:
        (part,) = parts
        plain, act = part.plain, part.plain.activation
        tensors = {name: getattr(plain, name) for name in ("w_enc", "b_enc", "w_dec", "b_dec", "w_skip")}
        kind: dict[str, Any] = {"kind": "relu"}
        if isinstance(act, KLargest):
            kind = {"kind": "topk", "k": act.k}
        elif isinstance(act, Above):
            kind = {"kind": "threshold", "k": act.k}
            tensors |= {"threshold": act.theta, "log_threshold": act.log}
        elif isinstance(act, Gate):
            kind = {"kind": "gated"}
            tensors |= {"gate_log_scale": act.log_scale, "gate_b_mag": act.b_mag}
        write_tensors(folder / WEIGHTS, tensors)
        document = {
            "format": "sparse-coder",
            "version": VERSION,
            "activation": kind,
            "input": "rms" if plain.rms else "raw",
            "tied": plain.tied,
            "groups": plain.groups,
            **{name: getattr(part.facts, name) for name in FACTS},
        }
        write_document(folder / DOCUMENT, document)
        return Written(load='load_file("coder.safetensors")  # safetensors.torch')

    def recognises(self, path: Path) -> bool:
        return (path / DOCUMENT).is_file() and (path / WEIGHTS).is_file()

    def read(self, path: Path, layer: int | None = None) -> list[Part]:
        where = path / DOCUMENT
        document = read_object(where)
        try:
            version, kind = document["version"], document["activation"]
            facts = Facts(**{name: document[name] for name in FACTS})
            rms, tied, groups = document["input"] == "rms", document["tied"], document["groups"]
        except (KeyError, TypeError) as error:
            raise DataError(f"{where} cannot be read: {error!r}") from None
        if version > VERSION:
            raise DataError(f"{where} has version {version}, this program reads up to {VERSION}")
        found = read_tensors(path / WEIGHTS, _required(kind["kind"], where))
        act: Activation = Relu()
        if kind["kind"] == "topk":
            act = KLargest(int(kind["k"]))
        elif kind["kind"] == "threshold":
            act = Above(found["threshold"], found.get("log_threshold"), kind.get("k"))
        elif kind["kind"] == "gated":
            act = Gate(found["gate_log_scale"], found["gate_b_mag"])
        plain = Plain(
            found["w_enc"],
            found["b_enc"],
            found["w_dec"],
            found["b_dec"],
            found.get("w_skip"),
            act,
            rms=rms,
            tied=tied,
            groups=None if groups is None else tuple(groups),
        )
        return [Part(shaped(plain, path), facts)]


def _required(kind: str, where: Path) -> list[str]:
    extra = {"relu": [], "topk": [], "threshold": ["threshold"], "gated": ["gate_log_scale", "gate_b_mag"]}
    if kind not in extra:
        raise DataError(f"{where}: activation {kind!r} is not known (known: {', '.join(extra)})")
    return ["w_enc", "b_enc", "w_dec", "b_dec", *extra[kind]]
