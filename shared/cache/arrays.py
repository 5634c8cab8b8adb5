"""The Zarr side of a cache: array metadata, so that any Zarr v3 reader opens the chunks.

Every document follows from the layout alone, byte by byte. So a damaged one is found by comparison and written again
without a harvest. The tests read them with Zarr itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import read_file, sync_folder, write_file
from .format import ARRAYS, FORMAT_NAME, FORMAT_VERSION, TOKEN_ARRAYS, Layout, StoredArray

METADATA = "zarr.json"


def metadata_files(layout: Layout) -> dict[str, bytes]:
    """Path below ``acts.zarr`` → content, of the group and of every array.

    Codecs are ``bytes(little)`` and ``crc32c`` and no compressor, so a chunk file is the array's memory from byte 0 and
    four bytes of checksum. A sharded one is the same memory and an index (:class:`shared.cache.format.StoredArray`).
    """
    group = {
        "attributes": {"format": FORMAT_NAME, "format_version": FORMAT_VERSION},
        "zarr_format": 3,
        "node_type": "group",
    }
    described = _attributes(layout)
    return {METADATA: _bytes(group)} | {
        f"{name}/{METADATA}": _bytes(_document(array, described.get(name, {}))) for name, array in layout.arrays.items()
    }


def write_metadata(path: Path, layout: Layout, *, keep: bool = False) -> list[Path]:
    """Writes every metadata file that is not as the layout has it, whole and synced; what it wrote.

    Args:
        keep: leave files that exist as they are.
    """
    root = path / ARRAYS
    root.mkdir(exist_ok=True)
    written = []
    for name, content in metadata_files(layout).items():
        file = root / name
        if (file.exists() and keep) or (file.is_file() and file.read_bytes() == content):
            continue
        file.parent.mkdir(exist_ok=True)
        write_file(file, [content])
        sync_folder(file.parent)
        written.append(file)
    if written:
        sync_folder(root)
        sync_folder(path)
    return written


def metadata_problems(path: Path, layouts: Sequence[Layout]) -> list[tuple[Path, str, str, bytes]]:
    """Metadata files that no layout describes: (file, found, expected, content expected).

    Args:
        layouts: the shapes that the arrays may have, the expected ones first. There are several while a growth, or the
            end of a harvest whose data ended early, is in progress.
    """
    problems = []
    allowed = [metadata_files(layout) for layout in layouts]
    names = dict.fromkeys(name for files in allowed for name in files)
    for name in names:
        contents = [files[name] for files in allowed if name in files]
        file = path / ARRAYS / name
        try:
            found = read_file(file)
        except DataError as error:
            problems.append((file, error.message, "array metadata", contents[0]))
            continue
        if found not in contents:
            problems.append((file, *_difference(found, contents[0]), contents[0]))
    return problems


def _difference(found: bytes, expected: bytes) -> tuple[str, str]:
    """The first key in which two metadata files differ, or their bytes."""
    there: Any = None
    with suppress(ValueError, RecursionError):
        there = json.loads(found)
    if isinstance(there, dict):
        for key, value in json.loads(expected).items():
            if there.get(key) != value:
                return f"{key} {json.dumps(there.get(key))}", json.dumps(value)
    return "metadata with other bytes", "those that follow from the layout"


def _bytes(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()


def _document(array: StoredArray, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": float(array.fill) if array.dtype.kind == "f" else array.fill,
        "codecs": _codecs(array),
        "attributes": dict(attributes),
        "dimension_names": list(_dimensions(array)),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _dimensions(array: StoredArray) -> tuple[str, ...]:
    if array.name in _TOKEN_NAMES:
        return ("sequence", "position")
    return ("row", "dimension")[: len(array.shape)]


def _attributes(layout: Layout) -> dict[str, dict[str, Any]]:
    """Array → its metadata attributes."""
    found: dict[str, dict[str, Any]] = {}
    for site in layout.sites:
        found[site.name] = {
            "logical_dtype": site.logical_dtype,
            "site": site.name,
            "layer": site.layer,
            "kind": site.kind,
            "module_path": site.module_path,
            "io": site.io,
        }
        if site.scale:
            found[site.name] |= {"quantised": site.quantised, "scale": site.scale}
            found[site.scale] = {"scale_of": site.name}
    return found


def _codecs(array: StoredArray) -> list[dict[str, Any]]:
    """As Zarr writes them: bytes and their checksum, or contiguous chunks with a checked index behind them."""
    plain: dict[str, Any] = {"name": "bytes"}
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    stored = plain if array.dtype.itemsize == 1 else little
    if array.chunk is None:
        return [stored, {"name": "crc32c"}]
    configuration = {
        "chunk_shape": list(array.chunk),
        "codecs": [stored],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": configuration}]


_TOKEN_NAMES = {array.name for array in TOKEN_ARRAYS}
