"""Finds out what a folder of activations is, and opens it."""

from __future__ import annotations

from pathlib import Path

from ..shared.errors import DataError
from .arrow import is_dataset, open_dataset
from .foreign import Foreign
from .tensors import SUFFIXES, open_tensors


def open_foreign(path: Path) -> Foreign:
    """Opens a folder or file in any format that is read here.

    Raises:
        DataError: nothing readable was found, or its arrays do not belong together.
    """
    if not path.exists():
        raise DataError(f"{path} was not found", "give a folder or a file with activations")
    if path.is_dir() and is_dataset(path):
        return open_dataset(path)
    files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.suffix in SUFFIXES)
    if files and files[0].suffix in SUFFIXES:
        return open_tensors(path, files)
    held = ", ".join(sorted(one.name for one in path.iterdir())[:10]) if path.is_dir() else path.name
    raise DataError(
        f"{path} holds no activations that are read here: found {held or 'nothing'}, expected a Hugging Face dataset "
        f"on disk (dataset_info.json) or files of {' '.join(SUFFIXES)}",
        "docs/caches.md lists what is read",
    )
