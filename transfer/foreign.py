"""Activations that another program wrote: what is in a folder, and how its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TOKENS = ("token_ids", "tokens", "input_ids")
"""Names under which programs keep token ids."""

ROW_ARRAYS = ("doc_id", "pos_in_doc", "flags")
"""What an export of this program says about each row besides its token."""


@dataclass(frozen=True)
class Column:
    """One array of activations: its width d and the dtype on disk."""

    width: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Foreign:
    """Activations of another program.

    Attributes:
        format: for the record: "datasets" or "tensors".
        columns: name → width and dtype.
        n_rows: rows of every column.
        ctx: rows of a sequence; None: rows without sequences.
        ids: arrays of whole numbers by name, [n_rows]: tokens (under "tokens") and ROW_ARRAYS, where there are any.
        read: (column, first row, end) → [rows, d] in the dtype on disk.
        files: all that were read, for the checksum.
        model: name of the model, if a file says so.
        ignored: arrays that are neither activations nor token ids.
    """

    format: str
    columns: Mapping[str, Column]
    n_rows: int
    ctx: int | None
    ids: Mapping[str, NDArray[np.int64]]
    read: Callable[[str, int, int], Tensor]
    files: tuple[Path, ...]
    model: str | None = None
    ignored: tuple[str, ...] = field(default=())


def token_name(name: str) -> bool:
    """Whether an array of that name holds token ids."""
    return name in TOKENS
