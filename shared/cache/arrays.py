"""The Zarr side of a cache: array metadata, written by Zarr itself, so that any Zarr v3 reader opens the chunks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from shared.cache.files import read_json, sync_folder, write_file
from shared.cache.format import ARRAYS, FORMAT_NAME, FORMAT_VERSION, TOKEN_ARRAYS, Layout, SiteSpec
from shared.errors import DataError

METADATA = "zarr.json"


def create_arrays(path: Path, layout: Layout) -> None:
    """Creates the group and every array of a cache that is not there yet; existing ones are left as they are.

    Codecs are ``bytes(little)`` and ``crc32c`` and no compressor, so a chunk file is the array's memory from byte 0 and
    four bytes of checksum.
    """
    import zarr  # reading a cache never needs it, and it takes a third of a second to import
    from zarr.codecs import Crc32cCodec

    root = path / ARRAYS
    if not (root / METADATA).exists():
        zarr.create_group(
            store=root, zarr_format=3, attributes={"format": FORMAT_NAME, "format_version": FORMAT_VERSION}
        )
        _sync(root)
    arrays = _token_arrays(layout) | {site.name: _site_array(layout, site) for site in layout.sites}
    for name, options in arrays.items():
        if (root / name / METADATA).exists():
            continue
        zarr.create_array(
            store=root,
            name=name,
            zarr_format=3,
            compressors=(Crc32cCodec(),),  # said outright: the default would be zstd
            filters=None,
            chunk_key_encoding={"name": "default", "separator": "."},
            **options,
        )
        _sync(root / name)
    sync_folder(root)


def _token_arrays(layout: Layout) -> dict[str, dict[str, Any]]:
    return {
        array.name: {
            "shape": (layout.n_seq, layout.ctx),
            "chunks": (layout.seqs_per_shard, layout.ctx),
            "dtype": array.dtype,
            "fill_value": array.fill,
            "dimension_names": ("sequence", "position"),
        }
        for array in TOKEN_ARRAYS
    }


def _site_array(layout: Layout, site: SiteSpec) -> dict[str, Any]:
    return {
        "shape": (layout.n_rows, site.width),
        "chunks": (layout.shard_rows, site.width),
        "dtype": site.stored_dtype,
        "fill_value": 0,
        "dimension_names": ("row", "dimension"),
        "attributes": {
            "logical_dtype": site.logical_dtype,
            "site": site.name,
            "layer": site.layer,
            "kind": site.kind,
            "module_path": site.module_path,
            "io": site.io,
        },
    }


def resize_arrays(path: Path, layout: Layout) -> None:
    """Writes the first dimension of every array anew, for a cache that ended sooner than planned; no chunk changes."""
    root = path / ARRAYS
    rows = {array.name: layout.n_seq for array in TOKEN_ARRAYS} | {site.name: layout.n_rows for site in layout.sites}
    for name, length in rows.items():
        metadata = read_json(root / name / METADATA)
        if metadata["shape"][0] != length:
            metadata["shape"][0] = length
            write_file(root / name / METADATA, [json.dumps(metadata, indent=2).encode()])
            sync_folder(root / name)


def metadata_problems(path: Path, layout: Layout) -> list[tuple[Path, str, str]]:
    """Arrays whose ``zarr.json`` does not describe the layout's chunk files: (file, found, expected)."""
    shapes = {a.name: (layout.n_seq, layout.ctx, layout.seqs_per_shard, a.dtype.name) for a in TOKEN_ARRAYS}
    shapes |= {s.name: (layout.n_rows, s.width, layout.shard_rows, s.stored_dtype.name) for s in layout.sites}
    problems = []
    for name, (length, width, chunk, dtype) in shapes.items():
        file = path / ARRAYS / name / METADATA
        expected = {
            "shape": [length, width],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk, width]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "codecs": ["bytes", "crc32c"],
        }
        try:
            metadata = read_json(file)
        except DataError as error:
            problems.append((file, error.message, "array metadata"))
            continue
        metadata["codecs"] = [codec.get("name") for codec in metadata.get("codecs", [])]
        for key, value in expected.items():
            if metadata.get(key) != value:
                problems.append((file, f"{key} {json.dumps(metadata.get(key))}", json.dumps(value)))
    return problems


def _sync(folder: Path) -> None:
    with (folder / METADATA).open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(folder)
