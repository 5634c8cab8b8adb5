"""Folders of `.safetensors`, `.npy` and `.pt` files: each file holds the next rows of its arrays.

A `.safetensors` file, and a `.pt` file with a mapping, name their arrays. A file with one array names it by its stem:
`tokens…` and `input_ids…` are token ids, anything else is the column `activations`. No pickle is loaded: `.pt` files
are read with weights_only, `.npy` files without objects.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..shared.archives import load_plain, map_array
from ..shared.errors import DataError
from .foreign import ROW_ARRAYS, Column, Foreign, token_name

SUFFIXES = (".safetensors", ".npy", ".pt")
ALONE = "activations"


@dataclass(frozen=True)
class Piece:
    """The part of an array in one file."""

    file: Path
    key: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype


def open_tensors(path: Path, files: Sequence[Path]) -> Foreign:
    """The arrays of the files, in the natural order of their names.

    Raises:
        DataError: a file cannot be read, or the arrays do not belong together; the error names files and shapes.
    """
    ordered = sorted(files, key=_natural)
    arrays: dict[str, list[Piece]] = {}
    for file in ordered:
        for name, piece in _pieces(file):
            arrays.setdefault(name, []).append(piece)
    floats = {name: some for name, some in arrays.items() if some[0].dtype.is_floating_point}
    ids = {name: some for name, some in arrays.items() if token_name(name) or name in ROW_ARRAYS}
    if not floats:
        raise DataError(f"{path}: found no array of floating-point numbers in {', '.join(arrays) or 'its files'}")
    ctx, n_rows = _shapes(path, floats)
    found_ids = {}
    for name, some in ids.items():
        values = torch.cat([_load(piece, 0, piece.shape[0]) for piece in some])
        if ctx is None and values.dim() == 2:
            ctx = int(values.shape[1])
        if values.numel() != n_rows or values.dtype.is_floating_point:
            raise DataError(
                f"{path}: {name} has {values.numel():,} entries of {values.dtype}, expected {n_rows:,} whole numbers, "
                "one for each row"
            )
        found_ids["tokens" if token_name(name) else name] = values.reshape(-1).numpy().astype(np.int64)
    return Foreign(
        format="tensors",
        columns={name: Column(some[0].shape[-1], some[0].dtype) for name, some in floats.items()},
        n_rows=n_rows,
        ctx=ctx,
        ids=found_ids,
        read=lambda name, start, stop: _rows(floats[name], start, stop),
        files=tuple(ordered),
        ignored=tuple(name for name in arrays if name not in floats and name not in ids),
    )


def _shapes(path: Path, floats: dict[str, list[Piece]]) -> tuple[int | None, int]:
    """(ctx, rows) that all arrays agree on. Raises DataError where they do not."""
    ctx: int | None = None
    rows: dict[str, int] = {}
    for name, pieces in floats.items():
        first = pieces[0]
        for piece in pieces:
            if len(piece.shape) not in (2, 3) or piece.shape[1:] != first.shape[1:] or piece.dtype != first.dtype:
                like = "" if piece is first else f" as in {first.file}: {list(first.shape)} {first.dtype}"
                raise DataError(
                    f"{piece.file}: {name} is {list(piece.shape)} {piece.dtype}, expected [rows, d] or "
                    f"[sequences, ctx, d]{like}"
                )
        if len(first.shape) == 3:
            if ctx not in (None, first.shape[1]):
                raise DataError(f"{path}: found sequences of {ctx} and, in {name}, of {first.shape[1]} rows")
            ctx = first.shape[1]
        rows[name] = sum(piece.shape[0] * (piece.shape[1] if len(piece.shape) == 3 else 1) for piece in pieces)
    if len(set(rows.values())) > 1:
        raise DataError(f"{path}: its arrays have different numbers of rows: {rows}")
    if not any(rows.values()):
        raise DataError(f"{path}: its arrays have no rows")
    return ctx, next(iter(rows.values()))


def _rows(pieces: Sequence[Piece], start: int, stop: int) -> Tensor:
    """Rows [start, stop) of an array, joined over its files."""
    out, at = [], 0
    for piece in pieces:
        each = piece.shape[1] if len(piece.shape) == 3 else 1
        n = piece.shape[0] * each
        first, last = max(start, at), min(stop, at + n)
        if first < last:
            low, high = (first - at) // each, -(-(last - at) // each)
            block = _load(piece, low, high).reshape(-1, piece.shape[-1])
            out.append(block[first - at - low * each : last - at - low * each])
        at += n
    return torch.cat(out)


def _pieces(file: Path) -> list[tuple[str, Piece]]:
    """The arrays of a file by name. Raises DataError if it cannot be read."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
                return [
                    (name, Piece(file, name, tuple(one.get_shape()), _SAFE[one.get_dtype()]))
                    for name, one in slices.items()
                ]
        found = _opened(file)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, EOFError, MemoryError) as error:
        raise _unreadable(file, error) from None
    if isinstance(found, Tensor):
        name = "tokens" if re.match(r"(tokens?|input_ids)", file.stem) else ALONE
        return [(name, Piece(file, None, tuple(found.shape), found.dtype))]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{file} holds {type(found).__name__}, expected a tensor or a mapping of tensors")
    return [(str(name), Piece(file, name, tuple(value.shape), value.dtype)) for name, value in found.items()]


def _unreadable(file: Path, error: Exception) -> DataError:
    text = str(error).strip().splitlines()
    return DataError(
        f"{file} cannot be read as tensors alone: {text[0] if text else type(error).__name__}",
        "save plain tensors; objects in a pickle are never loaded",
    )


@lru_cache(maxsize=2)
def _opened(file: Path) -> Any:
    """A .npy or .pt file, mapped."""
    if file.suffix == ".npy":
        return torch.from_numpy(map_array(file))
    return load_plain(file, mapped=True)


def _load(piece: Piece, start: int, stop: int) -> Tensor:
    """Entries [start, stop) along the first axis."""
    if piece.file.suffix == ".safetensors":
        with safe_open(piece.file, "pt") as opened:
            block: Tensor = opened.get_slice(piece.key)[start:stop]
        return block
    found = _opened(piece.file)
    whole: Tensor = found if piece.key is None else found[piece.key]
    return whole[start:stop]


def _natural(file: Path) -> list[tuple[int, int | str]]:
    """shard_2 before shard_10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", file.name)]


_SAFE = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "BOOL": torch.bool,
}
