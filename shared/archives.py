"""Arrays in zip archives of other programs (`.npz`, `.pt`): sizes are checked before a member is expanded.

No pickle runs: `.pt` files are read by torch with weights_only, `.npz` files without objects.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .untrusted import refuse_expansion

if TYPE_CHECKING:
    from torch import Tensor

_NO_ARRAY = (OSError, ValueError, TypeError, KeyError, MemoryError, SyntaxError, tokenize.TokenError)
"""What NumPy raises for a file that is no array, or claims too much: it reads a header as Python's literals."""

_AGAIN = "save its state dict again: torch.save(coder.state_dict(), PATH)"


def check_archive(file: Path) -> None:
    """Raises DataError unless the file is a zip archive whose members fit into it, expanded within the bound."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file} cannot be read as tensors alone: {error}", _AGAIN if file.suffix == ".pt" else None
        ) from None
    if sum(one.compress_size for one in members) > file.stat().st_size:
        raise DataError(f"{file} is damaged: its members overlap")
    refuse_expansion(file, sum(one.file_size for one in members))


def load_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file. Raises DataError."""
    check_archive(file)
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except (*_NO_ARRAY, NotImplementedError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as plain arrays: {error}") from None


def map_array(file: Path) -> np.ndarray:
    """The array of an `.npy` file, mapped. Raises DataError."""
    try:
        found: np.ndarray = np.load(file, mmap_mode="c", allow_pickle=False)
    except (*_NO_ARRAY, EOFError) as error:
        raise DataError(f"{file} cannot be read as tensors alone: {error}", "save it with numpy.save") from None
    return found


def load_plain(file: Path, *, mapped: bool = False) -> Any:
    """What a `.pt` file holds: tensors in plain containers. Raises DataError.

    Args:
        mapped: leave the tensors in the file, mapped.
    """
    import torch

    check_archive(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        for tensor in _tensors(found):
            _check_extent(tensor)
    except Exception as error:  # torch raises its own errors for what it refuses to construct
        text = str(error).strip().splitlines()
        raise DataError(
            f"{file} cannot be read as plain tensors: {text[0] if text else type(error).__name__}", _AGAIN
        ) from None
    return found


def _tensors(found: Any, depth: int = 0) -> Iterator[Tensor]:
    import torch

    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (Mapping, list, tuple)) and depth < 4:
        for one in found.values() if isinstance(found, Mapping) else found:
            yield from _tensors(one, depth + 1)


def _check_extent(tensor: Tensor) -> None:
    """Strides may claim a few stored bytes for any number of elements. Raises ValueError."""
    n_bytes = tensor.numel() * tensor.element_size()
    if tensor.layout.__str__() != "torch.strided" or n_bytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"a tensor of {list(tensor.shape)} has more elements than the file stores")
