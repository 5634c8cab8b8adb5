"""What a format is: which coders it holds, and how they are written and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ...shared.cache.files import json_bytes, write_file
from ...shared.errors import DataError, UsageError
from ..facts import Facts
from ..plain import Above, Gate, KLargest, Plain, Relu

ALL = (KLargest, Above, Relu, Gate)
"""Every activation."""

NAMES = {KLargest: "TopK", Above: "thresholds", Relu: "ReLU", Gate: "gated"}


@dataclass(frozen=True)
class Part:
    """One coder of an export.

    Attributes:
        plain: the weights.
        facts: where it belongs.
        run: folder of the run that it comes from; None: not from a run.
    """

    plain: Plain
    facts: Facts
    run: Path | None = None


@dataclass(frozen=True)
class Options:
    """What a user says of an export.

    Attributes:
        layers: circuit-tracer: number of layers of the model; those without a run get an empty transcoder.
        threshold: write TopK through a threshold also where the format knows k.
        version: gemma-scope: 1 (npz) or 2 (safetensors).
        report: neuronpedia: the folder of the run's report.
    """

    layers: int | None = None
    threshold: bool = False
    version: int = 2
    report: Path | None = None


@dataclass(frozen=True)
class Written:
    """What a format adds to export.json.

    Attributes:
        notes: what a reader must know, one line each.
        load: code that loads it.
        extra: further keys.
    """

    notes: tuple[str, ...] = ()
    load: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class Format(ABC):
    """One format. `name` is what `--to` takes."""

    name: ClassVar[str]
    tool: ClassVar[str]
    """What loads it."""
    many: ClassVar[bool] = False
    """Whether one export holds several coders."""
    readable: ClassVar[bool] = True
    """Whether `pipeline import` reads it."""

    @abstractmethod
    def known(self, plain: Plain, options: Options) -> tuple[type, ...]:
        """The activations that the format has for this coder, in the order of preference.

        Raises:
            UsageError: the format cannot hold this coder at all.
        """

    @abstractmethod
    def write(self, parts: Sequence[Part], folder: Path, options: Options) -> Written:
        """Write the coders into an empty folder. Their activations are among those of `known`."""

    def recognises(self, path: Path) -> bool:
        """Whether a folder (or file) is of this format."""
        return False

    def read(self, path: Path, layer: int | None = None) -> list[Part]:
        """The coders of a folder.

        Args:
            layer: only that layer's, of a set; None: all.

        Raises:
            DataError: damaged, or of a kind that is not supported.
        """
        raise UsageError(f"{self.name} is written, not read", "docs/interop.md lists what is read")

    def locate(self, folder: Path, part: Part) -> Path:
        """The path in an export that `read` takes for one of its coders, to measure what was written."""
        return folder


def single(tensor: Tensor) -> Tensor:
    """A float32 copy of its own, in C order."""
    return tensor.detach().to(torch.float32).cpu().clone(memory_format=torch.contiguous_format)


def write_tensors(path: Path, tensors: Mapping[str, Tensor | None], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file of float32 copies, leaving out what is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: single(value) for name, value in tensors.items() if value is not None}
    write_file(path, [save(kept, None if metadata is None else dict(metadata))])


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, [json_bytes(dict(document))])


def read_tensors(path: Path, required: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in float32.

    Raises:
        DataError: missing, unreadable, or a required tensor is missing.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    return checked(found, required, path)


def checked(found: Mapping[str, Tensor], required: Sequence[str], path: Path) -> dict[str, Tensor]:
    """Floating tensors in float32, the rest as they are. Raises DataError if a required one is missing."""
    missing = [name for name in required if name not in found]
    if missing:
        raise DataError(f"{path} holds {', '.join(sorted(found)) or 'nothing'}, but not {', '.join(missing)}")
    return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}


def shaped(plain: Plain, path: Path) -> Plain:
    """The coder itself, with its shapes checked. Raises DataError where they do not fit together."""
    if plain.w_enc.dim() != 2 or plain.w_dec.dim() != 2 or not plain.w_enc.numel() or not plain.w_dec.numel():
        raise DataError(
            f"{path}: found matrices {list(plain.w_enc.shape)} and {list(plain.w_dec.shape)}, expected [F, d]"
        )
    n, d_in, d_out = plain.n_latents, plain.d_in, plain.d_out
    wrong = [
        f"{name}: found {list(value.shape)}, expected {list(expected)}"
        for name, value, expected in (
            ("b_enc", plain.b_enc, (n,)),
            ("w_dec", plain.w_dec, (n, d_out)),
            ("b_dec", plain.b_dec, (d_out,)),
            ("w_skip", plain.w_skip, (d_out, d_in)),
            ("threshold", plain.activation.theta if isinstance(plain.activation, Above) else None, (n,)),
        )
        if value is not None and tuple(value.shape) != expected
    ]
    if wrong:
        raise DataError(f"{path}: the tensors do not fit together: " + "; ".join(wrong))
    return plain


def only_sae(plain: Plain, tool: str) -> None:
    """Raises UsageError unless the coder is a plain autoencoder of one site."""
    if not plain.tied or plain.w_skip is not None:
        what = "transcoders" if not plain.tied else "skip connections"
        raise UsageError(f"{tool} has no {what}", "--to saelens, circuit-tracer or safetensors hold it")


__all__ = [
    "ALL",
    "NAMES",
    "Format",
    "Options",
    "Part",
    "Written",
    "checked",
    "only_sae",
    "read_tensors",
    "shaped",
    "single",
    "write_document",
    "write_tensors",
]
