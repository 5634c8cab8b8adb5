"""Reads a cache through memory maps of its chunk files, without copies. Only committed shards are read."""

from __future__ import annotations

import bisect
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.registry import did_you_mean
from ..errors import DataError, UsageError, command, repair_command
from ..joint_names import parts_of, stored_sites
from ..objects.address import settled
from ..schemas import Massive, checked
from .commits import check_sizes, commits_of, load_checksums, load_commit, load_shard
from .first_touch import compare_once
from .format import ARRAYS, MANIFEST, PLAN, TOKEN_ARRAYS, Flag, Layout, SiteSpec, StoredArray
from .growth import Generation, Parts, generations_of, plan_files, read_head, read_plans
from .joint import balance, joined, joint_outliers, joint_spec, joint_stats
from .mirror import Mirror, mirror_of, shown
from .outliers import SiteOutliers, find_outliers
from .quantise import CODE_DTYPES, dequantise
from .rows import rest_rows, text_rows
from .stats import SiteStats, Vector, merge_stats

TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Cache:
    """An open cache. Make it with :func:`open_cache`.

    Attributes:
        path: the folder.
        manifest: the manifest, or the plan of an unfinished cache.
        layout: shapes.
        shards: the committed shards, in order (all of them unless the cache is incomplete).
        complete: the cache is finished and every shard is committed.
        parts: which commit covers which arrays.
        checksums: compare each chunk file with its commit when it is first read.
        left_out: sites whose rows with an infinity or a NaN are flagged NONFINITE (:meth:`without_nonfinite`).
        mirror: of a cache in a bucket; ``path`` then is the folder of its copies.
    """

    path: Path
    manifest: dict[str, Any] = field(repr=False)
    layout: Layout
    shards: list[int] = field(repr=False)
    complete: bool
    parts: Parts = field(repr=False)
    checksums: bool = True
    left_out: tuple[str, ...] = ()
    mirror: Mirror | None = field(default=None, repr=False)

    @property
    def config(self) -> dict[str, Any]:
        """The harvest config of the cache."""
        return dict(self.manifest["config"])

    @property
    def identity(self) -> str:
        """sha256 of the config, hex."""
        return str(self.manifest["identity"])

    @property
    def record(self) -> dict[str, Any]:
        """What a run notes of the cache that it is trained on."""
        path = str(self.path) if self.mirror is None else str(self.mirror.address)
        return {"path": path, "identity": self.identity}

    @property
    def has_bos(self) -> bool:
        """Whether its sequences begin with a BOS token (`harvest.bos`); if not, position 0 holds ordinary tokens."""
        return self.config.get("resolved", {}).get("bos_token_id", 0) is not None

    @property
    def has_tokens(self) -> bool:
        """Whether its rows have tokens: an imported cache may know activations only, and then all ids are 0."""
        return bool(self.config.get("imported", {}).get("tokens", True))

    @property
    def n_seq(self) -> int:
        return self.layout.n_seq

    @property
    def ctx(self) -> int:
        return self.layout.ctx

    @property
    def n_rows(self) -> int:
        return self.layout.n_rows

    @cached_property
    def sites(self) -> dict[str, SiteSpec]:
        return {site.name: site for site in self.layout.sites}

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """[n_seq, ctx]; 0 in shards without a commit."""
        return self._token_array(0)

    @cached_property
    def doc_id(self) -> NDArray[np.uint32]:
        """[n_seq, ctx] the document of each row, counted from 0 in harvest order."""
        return self._token_array(1)

    @cached_property
    def pos_in_doc(self) -> NDArray[np.uint16]:
        """[n_seq, ctx] position in the document, at most 65535."""
        return self._token_array(2)

    @cached_property
    def flags(self) -> NDArray[np.uint8]:
        """[n_seq, ctx] :class:`Flag` bits; padding in shards without a commit."""
        stored = self._token_array(3)
        if not self.left_out:
            return stored
        flagged = np.where(self.nonfinite_rows(self.left_out), np.uint8(Flag.NONFINITE), np.uint8(0))
        flags = np.asarray(stored | flagged.reshape(stored.shape), np.uint8)
        flags.setflags(write=False)
        return flags

    def without_nonfinite(self, sites: Sequence[str]) -> Self:
        """The same cache, in which rows with an infinity or a NaN at one of the sites have the flag NONFINITE: they are
        neither trained on nor counted."""
        return replace(self, left_out=tuple(sorted(stored_sites(sites))))

    def nonfinite_rows(self, sites: Sequence[str]) -> NDArray[np.bool_]:
        """[n_rows]: text rows with an infinity or a NaN at one of the sites. Reads shards whose commits count any."""
        found = np.zeros(self.n_rows, np.bool_)
        for site in (site for site in stored_sites(sites) if self.stats(site).nonfinite):
            for shard in self.shards:
                if self.shard_stats(site, shard).nonfinite:
                    rows = self.layout.rows_of(shard)
                    found[rows.start : rows.stop] |= ~self.chunk(site, shard).isfinite().all(dim=1).numpy()
        return found & text_rows(self._token_array(3)).reshape(-1)

    def spec(self, site: str) -> SiteSpec:
        """The description of a site, stored or joint. Raises UsageError, with the known sites, for any other name."""
        if len(parts := parts_of(site)) > 1:
            return joint_spec(site, [self.spec(part) for part in parts])
        if site not in self.sites:
            raise UsageError(
                f"no site {site!r} in {self.path}; its sites: {', '.join(self.sites)}",
                hint=command("inspect", self.path),
            )
        return self.sites[site]

    def chunk(self, site: str, shard: int) -> Tensor:
        """The rows of one shard, [rows, d] in the logical dtype: a view of the mapped file, not a copy.

        The map is private: writing to the tensor changes neither the file nor another map of it. A quantised site is
        dequantised, which is a copy, and so are the rows of a joint site.
        """
        if len(parts := parts_of(site)) > 1:
            return joined([self.chunk(part, shard) for part in parts])
        spec = self.spec(site)
        return _logical({name: self._stored(name, shard) for name in spec.arrays}, spec)

    def rows(self, site: str, index: Sequence[int] | NDArray[Any] | Tensor) -> Tensor:
        """Gathers rows [len(index), d] in the logical dtype, in the order of ``index``; meant for small sets."""
        if len(parts := parts_of(site)) > 1:
            return joined([self.rows(part, index) for part in parts])
        spec = self.spec(site)
        wanted = np.asarray(index, dtype=np.int64).reshape(-1)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.n_rows):
            raise IndexError(f"rows are 0 … {self.n_rows - 1}, found {wanted.min()} … {wanted.max()}")
        stored = {name: self.layout.arrays[name] for name in spec.arrays}
        out = {name: np.empty((len(wanted), *array.shape[1:]), array.dtype) for name, array in stored.items()}
        shard_of = wanted // self.layout.shard_rows
        for shard in np.unique(shard_of):
            places = np.flatnonzero(shard_of == shard)
            for name, values in out.items():
                values[places] = self._stored(name, int(shard))[wanted[places] - int(shard) * self.layout.shard_rows]
        return _logical(out, spec)

    def open_chunk(self, array: str, shard: int) -> int:
        """A descriptor of the file that :meth:`chunk_file` names; of a cache in a bucket, fetched and compared.

        Args:
            array: as for :meth:`chunk_file`.
        """
        file, _ = self.chunk_file(array, shard)
        if self.mirror is None:
            return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        stored, chunks = self.layout.arrays[array], self.mirror.chunks

        def crc(shard: int) -> int:
            return self._checksum(array, shard)

        descriptor = chunks.open(stored, shard, crc(shard), self.checksums)
        chunks.ahead(stored, self._after(shard), crc)
        return descriptor

    def through_copies(self, sites: Sequence[str]) -> tuple[int, int]:
        """Bytes of the sites' chunk files that are read through copies on this machine, and of the copies here."""
        if self.mirror is None:
            return 0, 0
        arrays = [self.layout.arrays[name] for site in stored_sites(sites) for name in self.spec(site).arrays]
        whole = sum(array.file_bytes for array in arrays) * len(self.shards)
        return whole, sum(array.file_bytes * self.mirror.chunks.here(array) for array in arrays)

    def chunk_file(self, array: str, shard: int) -> tuple[Path, int]:
        """The file that holds a shard's rows and the offset of the first one; of a cache in a bucket, where it is kept
        while it is here (:meth:`open_chunk` fetches it).

        Args:
            array: a site, or the scales of a quantised one (``SiteSpec.arrays``).
        """
        if array not in self.layout.arrays:
            self.spec(array)
        if shard not in self._shard_set:
            raise DataError(
                f"shard {shard} of {self.path} has no commit", hint="run the same harvest again to finish the cache"
            )
        return self.path / ARRAYS / self.layout.arrays[array].file(shard), 0

    def compare(self, array: str, shard: int, beyond_memory: bool = False) -> None:
        """Compares a chunk file with its commit, the first time that this process reads it.

        Args:
            array: as for :meth:`chunk_file`.
            beyond_memory: drop the file from the system's cache behind the reading.

        Raises:
            DataError: the file is damaged.
        """
        if self.mirror is not None:
            return  # compared when it was fetched, or opened
        stored = self.layout.arrays[array]
        compare_once(self.path / ARRAYS / stored.file(shard), stored, self._checksum(array, shard), beyond_memory)

    def _checksum(self, array: str, shard: int) -> int:
        """CRC-32C of a chunk file's payload, from its commit."""
        if shard not in self._crc:
            self._crc[shard] = load_checksums(self.path, shard, self.parts.owners(shard))
        crc = self._crc[shard].get(self.layout.arrays[array].file(shard))
        if crc is None:
            raise DataError(f"no commit of shard {shard} of {self.path} lists {array}", repair_command(self.path))
        return crc

    def _after(self, shard: int) -> Iterator[int]:
        """The committed shards behind one."""
        place = bisect.bisect_right(self.shards, shard)
        return (self.shards[n] for n in range(place, len(self.shards)))

    @property
    def identities(self) -> tuple[str, ...]:
        """Every identity of the cache: before each growth, and the present one."""
        return tuple(one.identity for one in self.parts.generations)

    def stats(self, site: str) -> SiteStats:
        """Statistics of a site over the whole cache (of an incomplete one, over the committed shards)."""
        spec = self.spec(site)
        if len(parts := parts_of(site)) > 1:
            return joint_stats([self.stats(part) for part in parts])
        if site not in self._stats:
            if "statistics" in self.manifest:
                kept = self.manifest["statistics"].get(site)
                found = iter([self._fitting(SiteStats.from_dict(kept) if kept else None, spec)])
            else:
                records = (load_shard(self.path, n, self.parts.owners(n, site)) for n in self.shards)
                found = (self._fitting(one.stats.get(site), spec) for one in records)
            self._stats[site] = merge_stats(found, spec.width, self.ctx)
        return self._stats[site]

    def balance(self, site: str) -> Vector | None:
        """What a joint site is multiplied by before its parts are added up in one figure [d]; None for one site."""
        parts = parts_of(site)
        return balance([self.stats(part) for part in parts]) if len(parts) > 1 else None

    def shard_stats(self, site: str, shard: int) -> SiteStats:
        """Statistics of a stored site over one shard, from its commit."""
        return load_shard(self.path, shard, self.parts.owners(shard, site)).stats[site]

    def outliers(self, site: str) -> SiteOutliers:
        """Massive rows and outlying dimensions of a site, from the manifest, or by a pass over its rows."""
        if len(parts := parts_of(site)) > 1:
            return joint_outliers([self.outliers(part) for part in parts])
        if site not in self._outliers:
            kept = self.manifest.get("massive", {}).get(site)
            rest = self.stats(site).rest
            self._outliers[site] = (
                find_outliers(rest, self._counted(site), lambda rows: self.rows(site, rows))
                if kept is None
                else self._outliers_from(kept, site)
            )
        return self._outliers[site]

    def _outliers_from(self, kept: dict[str, Any], site: str) -> SiteOutliers:
        found = SiteOutliers.from_dict(checked(Massive, kept, self.path / MANIFEST), self.stats(site).rest)
        width = self.spec(site).width
        inside = not len(found.rows) or (found.rows.min() >= 0 and found.rows.max() < self.n_rows)
        if not inside or found.massive.sum.shape != (width,) or any(d >= width for d in found.dimensions):
            raise DataError(
                f"{self.path / MANIFEST}: massive rows of {site} outside the cache", repair_command(self.path)
            )
        return found

    def _fitting(self, stats: SiteStats | None, spec: SiteSpec) -> SiteStats:
        """Statistics of a site, if they have its width. Raises DataError."""
        if stats is None or not stats.fits(spec.width, self.ctx):
            raise DataError(f"{self.path} holds no statistics that fit {spec.name}", repair_command(self.path))
        return stats

    def massive_rows(self, sites: Sequence[str]) -> NDArray[np.bool_]:
        """[n_rows]: rows that are massive at any of the sites."""
        found = np.zeros(self.n_rows, np.bool_)
        for site in sites:
            found[self.outliers(site).rows] = True
        return found

    def _counted(self, site: str) -> Iterator[tuple[int, NDArray[np.bool_], Tensor]]:
        """Of each shard: its first row, which of its rows are text outside position 0, and their activations."""
        for shard in self.shards:
            seqs = self.layout.seqs_of(shard)
            counted = rest_rows(self.flags[seqs.start : seqs.stop].reshape(-1), self.ctx)
            yield self.layout.rows_of(shard).start, counted, self.chunk(site, shard)[: len(counted)]

    @cached_property
    def _stats(self) -> dict[str, SiteStats]:
        return {}

    @cached_property
    def _crc(self) -> dict[int, dict[str, int]]:
        return {}

    @cached_property
    def _outliers(self) -> dict[str, SiteOutliers]:
        return {}

    @cached_property
    def _shard_set(self) -> frozenset[int]:
        return frozenset(self.shards)

    def _stored(self, name: str, shard: int) -> NDArray[Any]:
        """The rows of one shard of an array as they are stored, mapped."""
        self.chunk_file(name, shard)  # refuses a shard without a commit
        array = self.layout.arrays[name]
        if self.checksums:
            self.compare(name, shard)
        shape = (len(self.layout.rows_of(shard)), *array.shape[1:])
        descriptor = self.open_chunk(name, shard)
        try:
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
        return np.frombuffer(mapped, array.dtype, math.prod(shape)).reshape(shape)

    def _token_array(self, which: int) -> NDArray[Any]:
        array = self.layout.arrays[TOKEN_ARRAYS[which].name]
        out = np.full((self.n_seq, self.ctx), array.fill, array.dtype)
        for shard in self.shards:
            seqs = self.layout.seqs_of(shard)
            if self.checksums:
                self.compare(array.name, shard)
            with os.fdopen(self.open_chunk(array.name, shard), "rb") as file:
                stored = np.fromfile(file, array.dtype, len(seqs) * self.ctx)
            out[seqs.start : seqs.stop] = stored.reshape(len(seqs), self.ctx)
        out.setflags(write=False)
        return out


def massive_entry(cache: Cache) -> dict[str, Any]:
    """The manifest's entry `massive`: the massive rows and outlying dimensions of each site."""
    return {site: cache.outliers(site).to_dict() for site in cache.sites}


def read_sequences(path: Path, parts: Parts, shard: int) -> dict[str, NDArray[Any]]:
    """The token arrays of a committed shard by name, [sequences, ctx]; excluding the padding of a short shard."""
    shape = (parts.sequences(shard), parts.layout.ctx)
    crc = load_checksums(path, shard, {0: parts.owners(shard)[0]})
    found, mirror = {}, mirror_of(path)
    for name in (array.name for array in TOKEN_ARRAYS):
        array = parts.layout.arrays[name]
        file = path / ARRAYS / array.file(shard)
        if mirror is None:
            compare_once(file, array, crc[array.file(shard)])
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        else:
            descriptor = mirror.chunks.open(array, shard, crc[array.file(shard)])
            following = range(shard + 1, parts.layout.n_shards)
            mirror.chunks.ahead(array, following, partial(_token_checksum, path, parts, array))
        with os.fdopen(descriptor, "rb") as data:
            found[name] = np.fromfile(data, array.dtype, math.prod(shape)).reshape(shape)
    return found


def _token_checksum(path: Path, parts: Parts, array: StoredArray, shard: int) -> int:
    return load_checksums(path, shard, {0: parts.owners(shard)[0]})[array.file(shard)]


def stored_dtype(array: str, spec: SiteSpec) -> torch.dtype:
    """dtype in which an array of a site is read: the logical dtype, or that of codes or float32 scales."""
    if not spec.quantised:
        return TORCH_DTYPES[spec.logical_dtype]
    return torch.float32 if array == spec.scale else CODE_DTYPES[spec.quantised]


def logical_rows(stored: Mapping[str, Tensor], spec: SiteSpec) -> Tensor:
    """Rows of a site's arrays (array → tensor, as stored) in its logical dtype; a copy only if it is quantised."""
    if spec.quantised:
        return dequantise(stored[spec.name], stored[str(spec.scale)], spec.quantised)
    return stored[spec.name].view(TORCH_DTYPES[spec.logical_dtype])


def _logical(stored: Mapping[str, NDArray[Any]], spec: SiteSpec) -> Tensor:
    return logical_rows({name: torch.from_numpy(values) for name, values in stored.items()}, spec)


def open_cache(
    path: Path | str, allow_incomplete: bool = False, identity: str | None = None, checksums: bool = True
) -> Cache:
    """Opens a cache folder and checks the seals of its documents and the size of every committed file.

    Args:
        path: the cache folder.
        allow_incomplete: open an unfinished cache too; its shards without a commit read as padding.
        identity: if the cache has grown, open its generation with this identity. An unknown identity is ignored:
            compare with the identity of the opened cache.
        checksums: compare each chunk file with its commit when this process first reads it.

    Raises:
        DataError: no cache found, it is incomplete or has another version, or one of its files is damaged.
    """
    mirror = mirror_of(path)
    path = settled(Path(path)) if mirror is None else mirror.pulled().folder
    finished = (path / MANIFEST).exists()
    if not (path / PLAN).exists():
        if mirror is not None:
            raise DataError(
                f"no cache at {mirror.address}", "pipeline harvest --set harvest.cache_dir=ADDRESS   (writes one)"
            )
        if finished or (path / ARRAYS).is_dir():
            raise DataError(f"{path / PLAN} is missing", repair_command(path))
        raise _no_cache(path)
    head = read_head(path / MANIFEST if finished else plan_files(path)[-1])
    generations = generations_of(head)
    if finished and identity in (earlier := [one.identity for one in generations[:-1]]):
        head, generations = _as_it_was(path, head, generations[: earlier.index(str(identity)) + 1])
    layout = replace(Layout.from_dict(head["layout"]), n_seq=generations[-1].n_seq)
    parts, commits = Parts(layout, generations), commits_of(path)
    shards = parts.committed(commits)
    missing = layout.n_shards - len(shards)
    if not allow_incomplete and (missing or not finished):
        first = next((n for n, shard in enumerate(shards) if n != shard), len(shards))
        found = f"{len(shards)} of {layout.n_shards} shards are committed"
        gap = f" (shard {first} is not)" if missing else ", but it is not finished"
        raise DataError(
            f"{shown(path)} is incomplete: {found}{gap}",
            f"{command('harvest', '-c', shown(path))} writes what is missing",
        )
    if mirror is None:  # a bucket's chunk files are measured when they are fetched
        check_sizes(path, parts.expected_files(commits))
    return Cache(path, head, layout, shards, finished and not missing, parts, checksums, mirror=mirror)


def _no_cache(path: Path) -> DataError:
    """The error for a folder that is not a cache; it names the caches beside it."""
    known = [file.parent.name for file in sorted(path.parent.glob(f"*/{PLAN}"))]
    hint = "pipeline status   (lists caches; pipeline harvest writes one)"
    if known:
        hint = f"caches in {path.parent}: {', '.join(known)} (train.cache, analyze.cache); pipeline harvest writes more"
    return DataError(f"no cache at {path}{did_you_mean(path.name, known)}", hint)


def _as_it_was(
    path: Path, manifest: dict[str, Any], generations: tuple[Generation, ...]
) -> tuple[dict[str, Any], tuple[Generation, ...]]:
    """The head of an earlier generation: its plan and counts. Without statistics: those are summed when requested."""
    plan = read_plans(path)[len(generations) - 1]
    parts = Parts(replace(Layout.from_dict(plan["layout"]), n_seq=generations[-1].n_seq), generations)
    owners = [parts.owners(shard)[0] for shard in range(parts.layout.n_shards)]
    n_tokens = sum(load_commit(path, shard, 0, owner).tokens for shard, owner in enumerate(owners))
    facts = {"n_seq": parts.layout.n_seq, "n_tokens": n_tokens, "bytes": parts.layout.bytes_on_disk()}
    return plan | facts | {"layout": parts.layout.to_dict(), "extra": manifest.get("extra", {})}, generations
