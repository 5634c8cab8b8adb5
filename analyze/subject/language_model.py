"""A checkpoint's unembedding and last norm, read from its safetensors files: they map the residual stream to tokens.

No model is built and nothing is downloaded: the files are in the folder that was harvested, or in the local hub cache.
Of a merged adapter or a GGUF file (harvested.py) they are read from the loaded model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...shared.errors import DataError
from ...shared.untrusted import read_object

UNEMBEDDINGS = (
    "lm_head.weight",
    "model.language_model.lm_head.weight",
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
    "gpt_neox.embed_out.weight",
    "embed_out.weight",
)
"""Names of W_U [V, d], in the order of preference; the tied embedding comes after the head."""

FINAL_NORMS = (
    "model.norm.weight",
    "model.language_model.norm.weight",
    "language_model.model.norm.weight",
    "model.final_layernorm.weight",
    "transformer.ln_f.weight",
    "ln_f.weight",
    "gpt_neox.final_layer_norm.weight",
)
"""Names of the last norm's gain [d]. A bias of the same module means that the norm is a LayerNorm."""

ADD_ONE = ("gemma", "gemma2", "gemma3", "gemma3_text")
"""Model types whose RMS norm multiplies by 1 + w."""

BARE_LAYER_NORM = ("olmo",)
"""Model types whose last norm is a LayerNorm without weights."""


@dataclass(frozen=True)
class Unembedding:
    """W_U and the last norm's gain.

    Attributes:
        weight: [V, d] in the checkpoint's dtype.
        gain: [d] float32, the factor itself (1 + w for Gemma); ones where the last norm has no weights.
        centred: the last norm is a LayerNorm, which subtracts the mean over the d dimensions; RMS norms do not.
    """

    weight: Tensor
    gain: Tensor
    centred: bool = False

    @property
    def n_tokens(self) -> int:
        """V."""
        return int(self.weight.shape[0])


def load_unembedding(folder: Path | None, width: int) -> Unembedding | None:
    """The unembedding of a checkpoint; None where not found, unreadable, or of another width.

    Args:
        folder: of the checkpoint; None: no checkpoint.
        width: dimensions of the residual stream.
    """
    if folder is None:
        return None
    files = tensor_files(folder)
    try:
        return _unembedding(files, lambda name: read_tensor(files, name), _model_type(folder), width)
    except (OSError, SafetensorError):
        return None


def unembedding_of(model: nn.Module, width: int) -> Unembedding | None:
    """The unembedding of a loaded model; None where not found, or of another width."""
    tensors = model.state_dict()
    kind = str(getattr(model.config, "model_type", ""))
    return _unembedding(tensors, lambda name: tensors[name].cpu(), kind, width)


def _unembedding(names: Collection[str], read: Callable[[str], Tensor], kind: str, width: int) -> Unembedding | None:
    name = next((name for name in UNEMBEDDINGS if name in names), None)
    if name is None:
        return None
    weight = read(name)
    if weight.dim() != 2 or weight.shape[1] != width:
        return None
    norm = next((norm for norm in FINAL_NORMS if norm in names), None)
    gain = torch.ones(width) if norm is None else read(norm).float()
    if norm is not None and kind in ADD_ONE:
        gain = gain + 1
    centred = kind in BARE_LAYER_NORM or (norm is not None and f"{norm.removesuffix('weight')}bias" in names)
    return Unembedding(weight, gain, centred)


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name → its safetensors file; empty where no readable file is found."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names: Mapping[str, Any] = read_object(index)["weight_map"]
            return {name: folder / file for name, file in names.items() if (folder / file).is_file()}
        except (DataError, KeyError, AttributeError, TypeError):
            return {}
    single = folder / "model.safetensors"
    if not single.is_file():
        return {}
    try:
        with safe_open(single, "pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (OSError, SafetensorError):
        return {}


def read_tensor(files: Mapping[str, Path], name: str) -> Tensor:
    """One tensor of a checkpoint, from the files of :func:`tensor_files`."""
    with safe_open(files[name], "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _model_type(folder: Path) -> str:
    """`model_type` of a checkpoint's config.json; "" where not found."""
    try:
        return str(read_object(folder / "config.json").get("model_type", ""))
    except DataError:
        return ""
