"""The bytes of a safetensors file, taken from the tensors where they lie.

The library's `save` first copies all tensors into one string, and holds the interpreter's lock meanwhile: a checkpoint
written by another thread would stop the training that it is written beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""Names of dtypes in the format, in the order in which the library sorts them."""

_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}


def safetensors_parts(tensors: Mapping[str, Tensor]) -> list[np.ndarray | bytes]:
    """The file's header and the memory of its tensors: together the bytes that `safetensors.torch.save` returns.

    Larger dtypes come first, which aligns every tensor to its dtype, and those of one dtype by name. Tensors on the CPU
    that are contiguous are not copied: they must not change until they are written.

    Raises:
        KeyError: a dtype of none of a run's tensors.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-_ORDER[item[1].dtype], item[0]))
    header: dict[str, object] = {}
    parts: list[np.ndarray | bytes] = []
    at = 0
    for name, value in ordered:
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        header[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [at, at + len(data)],
        }
        parts.append(data)
        at += len(data)
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return [len(head).to_bytes(8, "little") + head, *parts]
