"""Whether the files of a checkpoint are whole: the errors of the libraries name neither the file nor the cure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..shared.errors import UsageError
from ..shared.untrusted import parse_json, read_object

_POINTER = b"version https://git-lfs"
_INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000  # bytes; the limit of safetensors
_LONGEST_NAME = 255  # bytes, of a file


def refuse_damaged(folder: Path, setting: str) -> None:
    """Looks at the files of a local checkpoint, without reading a weight.

    Raises:
        UsageError: a file is a Git LFS pointer, is cut off or is no JSON, or a shard of the weights is missing.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".model", ".gguf", ".txt") or not path.is_file():
            continue
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
        if head == _POINTER:
            raise UsageError(
                f"{setting}: {path} is a Git LFS pointer, not the file itself", hint=f"git -C {folder} lfs pull"
            )
        if path.suffix == ".safetensors":
            _refuse_cut(path, setting)
        if path.suffix == ".json":
            _refuse_no_json(path, setting)
    if (folder / _INDEX).is_file():
        named = _files_of(folder / _INDEX, setting)
        if missing := sorted(name for name in named if not (folder / name).is_file()):
            raise UsageError(
                f"{setting}: {len(missing)} of {len(named)} files of weights in {folder / _INDEX} were not found, "
                f"such as {missing[0]}",
                hint="download the model again",
            )


def stored_numbers(folder: Path) -> int:
    """How many numbers the safetensors files of a folder hold."""
    shapes = [entry["shape"] for path in folder.glob("*.safetensors") for entry in _entries(path)[1]]
    return sum(math.prod(shape) for shape in shapes)


def _entries(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """Length and entries of the header of a safetensors file: 8 bytes with its length, then JSON.

    Raises:
        ValueError: the file does not begin with one, or not with one of this form.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(path.stat().st_size, _LONGEST_HEADER):
            raise ValueError("no header")
        header = parse_json(file.read(length))
    entries = [entry for name, entry in header.items() if name != "__metadata__"] if isinstance(header, dict) else [{}]
    if not all(isinstance(entry, dict) and _whole(entry.get("shape")) for entry in entries):
        raise ValueError("no shapes")
    if not all(_whole(entry.get("data_offsets")) and len(entry["data_offsets"]) == 2 for entry in entries):
        raise ValueError("no places")
    return length, entries


def _whole(value: Any) -> bool:
    """Whether it is a list of whole numbers."""
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _files_of(index: Path, setting: str) -> set[str]:
    """The files of weights that an index names. Raises UsageError where it names none, or one elsewhere."""
    named = read_object(index, "download it again").get("weight_map")
    if not isinstance(named, dict):
        raise UsageError(f"{setting}: {index} names no files of weights", "download it again")
    found = {str(name) for name in named.values()}
    if elsewhere := sorted(name for name in found if name != Path(name).name or len(name.encode()) > _LONGEST_NAME):
        raise UsageError(f"{setting}: {index} names {elsewhere[0]!r}, no file beside it", "download it again")
    return found


def _refuse_cut(path: Path, setting: str) -> None:
    size = path.stat().st_size
    try:
        length, entries = _entries(path)
    except ValueError:
        raise UsageError(f"{setting}: {path} is no safetensors file ({size:,} bytes)", "download it again") from None
    expected = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
    if size < expected:
        raise UsageError(
            f"{setting}: {path} is cut off: found {size:,} bytes, expected {expected:,}", hint="download it again"
        )


def _refuse_no_json(path: Path, setting: str) -> None:
    try:
        parse_json(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{setting}: {path} is no JSON: {error}", hint="download it again") from None
