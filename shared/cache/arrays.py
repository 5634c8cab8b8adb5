"""The Zarr side of a cache: array metadata, written by Zarr itself, so that any Zarr v3 reader opens the chunks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import read_json, sync_folder, write_file
from .format import ARRAYS, FORMAT_NAME, TOKEN_ARRAYS, Layout, StoredArray

METADATA = "zarr.json"


def create_arrays(path: Path, layout: Layout) -> None:
    """Creates the group and every array that does not exist yet; existing ones stay unchanged.

    Codecs are ``bytes(little)`` and ``crc32c`` and no compressor, so a chunk file is the array's memory from byte 0 and
    four bytes of checksum. A sharded one is the same memory and an index (:class:`shared.cache.format.StoredArray`).
    """
    import zarr  # reading a cache never needs it, and it takes a third of a second to import
    from zarr.codecs import Crc32cCodec

    root = path / ARRAYS
    if not (root / METADATA).exists():
        attributes = {"format": FORMAT_NAME, "format_version": layout.format_version}
        zarr.create_group(store=root, zarr_format=3, attributes=attributes)
        _sync(root)
    described = _attributes(layout)
    for array in layout.arrays.values():
        if (root / array.name / METADATA).exists():
            continue
        zarr.create_array(
            store=root,
            name=array.name,
            zarr_format=3,
            shape=array.shape,
            chunks=array.chunk or array.shard,
            shards=array.shard if array.chunk else None,
            dtype=array.dtype,
            fill_value=array.fill,
            dimension_names=_dimensions(array),
            attributes=described.get(array.name, {}),
            compressors=None if array.chunk else (Crc32cCodec(),),  # said outright: the default would be zstd
            filters=None,
            chunk_key_encoding={"name": "default", "separator": "."},
        )
        _sync(root / array.name)
    sync_folder(root)


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


def resize_arrays(path: Path, layout: Layout) -> None:
    """Updates the length of every array, for a cache that ended early or grew; no chunk changes."""
    root = path / ARRAYS
    for name, array in layout.arrays.items():
        metadata = read_json(root / name / METADATA)
        if metadata["shape"][0] != array.shape[0]:
            metadata["shape"][0] = array.shape[0]
            write_file(root / name / METADATA, [json.dumps(metadata, indent=2).encode()])
            sync_folder(root / name)


def metadata_problems(path: Path, layout: Layout, growing: bool = False) -> list[tuple[Path, str, str]]:
    """Arrays whose ``zarr.json`` does not describe the layout's chunk files: (file, found, expected).

    Args:
        growing: a growth is in progress, which may have made the arrays longer.
    """
    problems = []
    for name, array in layout.arrays.items():
        file = path / ARRAYS / name / METADATA
        expected = {
            "shape": list(array.shape),
            "data_type": array.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.shard)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "codecs": _codecs(array),
        }
        try:
            metadata = read_json(file)
        except DataError as error:
            problems.append((file, error.message, "array metadata"))
            continue
        if growing and metadata.get("shape", [0])[0] >= array.shape[0]:
            metadata["shape"] = [array.shape[0], *metadata["shape"][1:]]
        for key, value in expected.items():
            if metadata.get(key) != value:
                problems.append((file, f"{key} {json.dumps(metadata.get(key))}", json.dumps(value)))
    return problems


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


def _sync(folder: Path) -> None:
    with (folder / METADATA).open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(folder)
