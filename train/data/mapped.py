"""Rows drawn from memory-mapped shards: nothing is copied until a batch is.

For data that fit the system's cache of file pages, which processes share: training needs no memory of its own for rows,
and begins without reading all of them first.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...shared.cache import Cache
from ...shared.cache.joint import joined
from ...shared.cache.reader import logical_rows, stored_dtype
from ...shared.errors import DataError, repair_command
from ...shared.joint_names import parts_of, stored_sites
from .reader import from_bits


class MappedRows:
    """All rows of some sites, in the place of a pool: the slot of a row is its number in the cache.

    A page that is not in the system's cache is read when a row in it is drawn, one wait for each: `BlockReader.warm`
    reads the blocks of a window beforehand.

    Args:
        sites: which sites; of a joint one, its parts.

    Raises:
        DataError: a chunk file is shorter than its rows.
    """

    bytes = 0

    def __init__(self, cache: Cache, sites: Sequence[str]) -> None:
        self._wanted = tuple(sites)
        self._specs = tuple(cache.spec(site) for site in stored_sites(sites))
        self._shard_rows = cache.layout.shard_rows
        self._dtypes = {name: stored_dtype(name, spec) for spec in self._specs for name in spec.arrays}
        self._files: dict[str, dict[int, NDArray[np.generic]]] = {
            name: {shard: _mapped(cache, name, shard) for shard in cache.shards} for name in self._dtypes
        }

    def gather(self, slots: Tensor) -> dict[str, Tensor]:
        """Copies rows out: site → [len(slots), d] in its logical dtype."""
        rows = slots.numpy()
        shard = rows // self._shard_rows
        order = np.argsort(shard, kind="stable")
        cuts = np.flatnonzero(np.diff(shard[order])) + 1
        groups = [(int(shard[at[0]]), at, rows[at] % self._shard_rows) for at in np.split(order, cuts) if len(at)]
        stored = {}
        for name, files in self._files.items():
            like = next(iter(files.values()))
            whole = np.empty((len(rows), *like.shape[1:]), like.dtype)
            for number, at, inside in groups:
                # what is taken of one shard is small: it stays in the processor's cache until it is put in its place
                whole[at] = np.take(files[number], inside, axis=0)
            stored[name] = from_bits(whole, self._dtypes[name])
        acts = {spec.name: logical_rows(stored, spec) for spec in self._specs}
        return {site: joined([acts[part] for part in parts_of(site)]) for site in self._wanted}

    def mark_used(self) -> None:
        """Nothing: nobody writes to them."""

    def wait_unused(self) -> None:
        """Nothing: nobody writes to them."""

    def close(self) -> None:
        """Lets go of the files."""
        self._files = {}


def _mapped(cache: Cache, name: str, shard: int) -> NDArray[np.generic]:
    """The rows of one shard of an array as integers of their size, [rows, …]."""
    array = cache.layout.arrays[name]
    shape = (len(cache.layout.rows_of(shard)), *array.shape[1:])
    bits = np.dtype(f"i{array.dtype.itemsize}")
    descriptor = cache.open_chunk(name, shard)
    try:
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    needed = math.prod(shape) * bits.itemsize
    if len(mapped) < needed:
        raise DataError(
            f"{cache.chunk_file(name, shard)[0]} has {len(mapped):,} bytes, expected {needed:,} or more",
            hint=repair_command(cache.path),
        )
    return np.frombuffer(mapped, bits, math.prod(shape)).reshape(shape)
