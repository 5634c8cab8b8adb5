"""Caches of the same tokens read as one: the sites of several models, row by row beside each other.

The sites of the first cache keep their names; those of the second are called `SITE@2`, of the third `SITE@3`. The rows
must belong to the same tokens at the same places, which is checked on the token arrays themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..joint_names import JOIN, stored_sites
from .locate import locate
from .outliers import SiteOutliers
from .reader import Cache, open_cache
from .stats import SiteStats

MARK = "@"
SCALE = ".scale"


@dataclass(frozen=True)
class CachesBeside(Cache):
    """A cache with the sites of others. Open it with :func:`open_beside`.

    Attributes:
        others: the second cache, the third, ….
    """

    others: tuple[Cache, ...] = field(default=(), repr=False)

    @property
    def record(self) -> dict[str, Any]:
        return {**super().record, "beside": [other.record for other in self.others]}

    def chunk_file(self, array: str, shard: int) -> tuple[Path, int]:
        owner, name = self._owner(array)
        return super().chunk_file(array, shard) if owner is None else owner.chunk_file(name, shard)

    def open_chunk(self, array: str, shard: int) -> int:
        owner, name = self._owner(array)
        return super().open_chunk(array, shard) if owner is None else owner.open_chunk(name, shard)

    def compare(self, array: str, shard: int, beyond_memory: bool = False) -> None:
        owner, name = self._owner(array)
        if owner is None:
            super().compare(array, shard, beyond_memory)
        else:
            owner.compare(name, shard, beyond_memory)

    def through_copies(self, sites: Sequence[str]) -> tuple[int, int]:
        found = []
        for site in stored_sites(sites):
            owner, name = self._owner(site)
            found.append(super().through_copies([name]) if owner is None else owner.through_copies([name]))
        return sum(whole for whole, _ in found), sum(here for _, here in found)

    def stats(self, site: str) -> SiteStats:
        owner, name = self._owner(site)
        return super().stats(site) if owner is None else owner.stats(name)

    def shard_stats(self, site: str, shard: int) -> SiteStats:
        owner, name = self._owner(site)
        return super().shard_stats(site, shard) if owner is None else owner.shard_stats(name, shard)

    def outliers(self, site: str) -> SiteOutliers:
        owner, name = self._owner(site)
        return super().outliers(site) if owner is None else owner.outliers(name)

    def _owner(self, array: str) -> tuple[Cache | None, str]:
        """(the other cache that stores an array of one site, its name there); None: this one, or a joint site."""
        name, mark, rest = array.partition(MARK)
        number, scale = rest.removesuffix(SCALE), rest.endswith(SCALE)
        if JOIN in array or not mark or not number.isdigit() or not 2 <= int(number) <= len(self.others) + 1:
            return None, array
        return self.others[int(number) - 2], name + (SCALE if scale else "")


def open_beside(cache: Cache, others: Sequence[Cache]) -> Cache:
    """The cache itself, or with the sites of others of the same tokens.

    Raises:
        DataError: another cache has other shapes or tokens; names the first difference.
    """
    if not others:
        return cache
    for other in others:
        _check_aligned(cache, other)
    added = tuple(
        replace(spec, name=f"{spec.name}{MARK}{number}")
        for number, other in enumerate(others, 2)
        for spec in other.layout.sites
    )
    layout = replace(cache.layout, sites=(*cache.layout.sites, *added))
    known = {one.name: getattr(cache, one.name) for one in fields(Cache)}
    return CachesBeside(**{**known, "layout": layout}, others=tuple(others))


def open_recorded(known: Mapping[str, Any], run: Path, path: Path | None = None, checksums: bool = True) -> Cache:
    """The cache that a run was trained on, with those beside it, from its record (`Cache.record`).

    Args:
        run: the run's folder: a cache that was moved is looked for around it.
        path: of the first cache, in place of the recorded one.
    """
    first = locate(Path(known["path"]), known.get("identity"), run) if path is None else path
    cache = open_cache(first, identity=known.get("identity"), checksums=checksums)
    beside = [open_recorded(other, run, checksums=checksums) for other in known.get("beside", ())]
    return open_beside(cache, beside)


def _check_aligned(a: Cache, b: Cache) -> None:
    hint = (
        "harvest both models, of one tokenizer, on the same text with the same settings except harvest.model and "
        "harvest.name (docs/crosscoders.md)"
    )
    for what in ("n_seq", "ctx", "shard_rows"):
        ours, theirs = getattr(a.layout, what), getattr(b.layout, what)
        if ours != theirs:
            raise DataError(f"train.beside: {b.path} has {what} {theirs:,}, but {a.path} has {ours:,}", hint)
    for name in ("tokens", "flags", "doc_id"):
        one, other = getattr(a, name), getattr(b, name)
        if not np.array_equal(one, other):
            row = int(np.flatnonzero((one != other).reshape(-1))[0])
            raise DataError(
                f"train.beside: {b.path} does not hold the tokens of {a.path}: {name} of row {row:,} is "
                f"{int(other.reshape(-1)[row])}, expected {int(one.reshape(-1)[row])}",
                hint,
            )
