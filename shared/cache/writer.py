"""Writes a cache shard by shard. Whenever the process ends, a shard is either complete or absent.

The order of writing ensures it. Each chunk file is written under a temporary name, synced and renamed; then the folders
are synced, so that the renames are on disk; only then is the commit file written in the same way. A commit on disk is
therefore proof that every file it names is complete. Chunk files without a commit are written again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import MIRROR, DataError, UsageError, command
from .arrays import write_metadata
from .chunk_copies import payload_rows
from .commits import (
    ChunkFile,
    CommitRecord,
    check_sizes,
    commit_path,
    commits_of,
    load_checksums,
    load_commit,
    load_shard,
)
from .files import (
    SharedSync,
    as_bytes,
    crc32c,
    explained_full_disk,
    make_folder,
    partial_files,
    read_file,
    sealed_bytes,
    sync_folder,
    write_file,
    write_sealed,
)
from .format import ARRAYS, COMMITS, LOCK, MANIFEST, PLAN, STORED, TOKEN_ARRAYS, Layout, SiteSpec, commit_name
from .growth import Parts, Standing, copy_of, is_empty, read_head, read_plans, stand, standing_of
from .in_bucket import begin, check_objects, commit, publish, publish_final, publish_new
from .lock import WriterLock
from .mirror import Mirror, mirror_of, shown
from .quantise import codes_under, dequantise, quantise
from .reader import Cache, massive_entry
from .rows import text_rows
from .stats import SiteStats, site_stats


@dataclass(frozen=True)
class Share:
    """Which shards one of several writers owns: of the units in order, every ``world``-th from ``rank`` on.

    Attributes:
        rank, world: this writer, and how many there are.
        unit_shards: shards that are computed together, and so belong to one writer (Parts.units).
    """

    rank: int = 0
    world: int = 1
    unit_shards: int = 1

    def of(self, parts: Parts) -> frozenset[int]:
        """The shards."""
        units = enumerate(parts.units(self.unit_shards))
        return frozenset(shard for unit, shards in units if unit % self.world == self.rank for shard in shards)


class CacheWriter:
    """The writing side of one cache folder; make it with :meth:`create`, and close it (or use ``with``).

    Attributes:
        path: the folder.
        layout: the plan's shapes; after :meth:`finish`, the finished ones.
        parts: which commit vouches for which arrays (of a cache that grew there are several to a shard).
        complete: the cache is finished: a manifest, and a commit for every shard.
        mirror: of a cache in a bucket; ``path`` then is the folder of its copies.
    """

    def __init__(
        self, path: Path, standing: Standing, lock: WriterLock, share: Share, mirror: Mirror | None = None
    ) -> None:
        self.path, self.mirror = path, mirror
        self.layout = standing.layout
        self.parts = standing.parts
        self._plan = standing.plan
        self._lock = lock
        self._share = share
        self._missing = self.parts.missing(commits_of(path))
        self._owned = None if share.world == 1 else share.of(self.parts)
        self._guard = threading.Lock()
        self._folders = SharedSync()
        self.complete = standing.finished and not self._missing

    @classmethod
    def create(
        cls,
        path: Path | str,
        layout: Layout,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
        share: Share | None = None,
        may_grow: Collection[str] = (),
        set_up: Callable[[], None] | None = None,
    ) -> Self:
        """Begins a cache, resumes one that was made from the same config and layout, or lets a finished one grow.

        Args:
            path: the cache folder, whose parents are made, or an address in object storage.
            layout: planned shapes; counts sequences with data. A cache that grew past a short shard also has padding.
            config: everything that determines the bytes of the cache, JSON-able; its hash is the cache's identity.
            provenance: package versions, revisions and the like; recorded at the start, not compared on resume.
            share: of several writers, which shards are this one's; None: it is the only one.
            may_grow: dotted paths of the config in which a finished cache may differ and grow, provided the layout has
                all its sites and at least as many sequences. Committed files are never rewritten.
            set_up: what else one writer does for all of them before the first shard; nobody else writes meanwhile.

        Raises:
            DataError: the folder holds other files, or a cache with a different config and at least one commit (the
                error lists every field that differs).
            PipelineError: another process is writing the cache; or the storage of the bucket cannot be used.
        """
        mirror, share = mirror_of(path), share or Share()
        path = Path(path) if mirror is None else _pulled(mirror)
        config = json.loads(json.dumps(config, allow_nan=False))
        provenance = json.loads(json.dumps(provenance, allow_nan=False))
        _refuse_foreign_folder(path)
        make_folder(path, "harvest.cache_dir")
        lock = WriterLock(path, share.rank, share.world)
        try:
            standing = stand(path, layout, config, provenance, may_grow)
            if mirror is not None and lock.is_first and begin(mirror, standing):
                standing = stand(path, layout, config, provenance, may_grow)  # on a plan that another writer put there
                begin(mirror, standing)
            if standing.replaces and not lock.is_first:
                raise DataError(
                    f"another rank is starting {path} with a different config",
                    hint="start every rank with the same settings",
                )
            if lock.is_first:
                _set_up(path, standing)
                if set_up is not None:
                    set_up()
                if mirror is not None:
                    publish_new(mirror, standing.layout)
            _check_built_on(path, standing, mirror)
            lock.set_up_done()
            return cls(path, standing, lock, share, mirror)
        except BaseException:
            lock.release()
            raise

    def missing_shards(self) -> list[int]:
        """The shards of this rank that have no commit of all their arrays, in order."""
        with self._guard:
            return [shard for shard in sorted(self._missing) if self.owns(shard)]

    def owns(self, shard: int) -> bool:
        """Whether the shard is this writer's to write."""
        return self._owned is None or shard in self._owned

    def ranks_left(self, n_seq: int | None = None) -> bool:
        """Whether the finish is left to another rank: one is at work still, or has to write its shards first.

        After True this writer holds the cache no longer. A single writer always finishes.

        Args:
            n_seq: as for :meth:`finish`.
        """
        if self._share.world == 1:
            return False
        if not self._lock.alone():
            return True
        self.refresh()
        standing = standing_of(self.path, read_plans(self.path), _manifest(self.path))
        if standing.finished:  # by another rank, while this one waited
            self.layout, self.parts, self.complete = standing.layout, standing.parts, True
            return False
        return bool(self._planned_parts(n_seq).missing(commits_of(self.path)))

    def refresh(self) -> None:
        """Learns what other machines have done since, of a cache in a bucket."""
        if self.mirror is not None:
            self.mirror.pull()

    def committed_elsewhere(self, shard: int) -> bool:
        """Whether another machine has committed a missing shard since, in a bucket; then it is not missing."""
        if self.mirror is None or shard not in self._missing:
            return False
        if not all(self.mirror.pull_commit(commit_name(shard, part)) for part in self._missing[shard]):
            return False
        with self._guard:
            del self._missing[shard]
        return True

    def publish(self, *names: str) -> None:
        """Puts documents of the folder into the bucket, if the cache lies in one; without those that do not exist."""
        if self.mirror is not None:
            for name in names:
                if (self.path / name).is_file():
                    publish(self.mirror, name)

    def missing_sites(self, shard: int) -> tuple[str, ...]:
        """The sites of a shard that have no commit, in the layout's order."""
        with self._guard:
            arrays = {name for part in self._missing.get(shard, ()) for name in self.parts.of(shard)[part]}
        return tuple(site.name for site in self.layout.sites if site.name in arrays)

    def has_tokens(self, shard: int) -> bool:
        """Whether the shard's tokens are committed; then only added sites can be missing."""
        with self._guard:
            return 0 not in self._missing.get(shard, ())

    def missing_bytes(self) -> int:
        """Bytes of the chunk files still to write."""
        with self._guard:
            return self.parts.missing_bytes(self._missing)

    def write_shard(
        self,
        shard: int,
        *,
        tokens: NDArray[Any],
        doc_id: NDArray[Any],
        pos_in_doc: NDArray[Any],
        flags: NDArray[Any],
        acts: Mapping[str, Tensor | NDArray[Any]],
        stats: Mapping[str, SiteStats] | None = None,
    ) -> CommitRecord:
        """Writes one shard and commits it. Threads may write distinct shards at the same time.

        Args:
            shard: its index.
            tokens, doc_id, pos_in_doc, flags: [sequences, ctx]; only the last shard of a cache may hold
                fewer sequences than planned.
            acts: site → [sequences · ctx, d], of :meth:`missing_sites` at least: a bfloat16 tensor or its uint16 bits
                (of a quantised site too: it is quantised here); float32 for a float32 site.
            stats: site → statistics of these rows, where they were measured already (shared.cache.tensor_stats); the
                other sites are measured here. Not of a quantised site: its own are of the rows a reader gets back.

        Raises:
            PipelineError: the disk is full. Nothing committed is lost, and the shard can be written again.
            ValueError: an array has the wrong shape or dtype, or the shard is committed already.
        """
        with self._guard:
            todo = self._missing.get(shard)
        if todo is None:
            raise ValueError(f"shard {shard} is committed already; committed shards are never rewritten")
        arrays = {"tokens": tokens, "doc_id": doc_id, "pos_in_doc": pos_in_doc, "flags": flags}
        n_seq = len(tokens)
        if not 1 <= n_seq <= len(self.layout.seqs_of(shard)):
            raise ValueError(f"shard {shard} holds at most {len(self.layout.seqs_of(shard))} sequences, found {n_seq}")
        needed = set(self.missing_sites(shard))
        if not needed <= set(acts) <= {site.name for site in self.layout.sites}:
            raise ValueError(f"found activations of {sorted(acts)}, expected {sorted(needed)}")
        described = {
            array.name: _checked(arrays[array.name], array.dtype, (n_seq, self.layout.ctx)) for array in TOKEN_ARRAYS
        }
        digest = hashlib.sha256(as_bytes(described["tokens"]).tobytes()).hexdigest()
        for site in (site for site in self.layout.sites if site.name in (stats or {})):
            if site.quantised or not (stats or {})[site.name].fits(site.width, self.layout.ctx):
                raise ValueError(f"site {site.name}: the statistics given are not those of the stored rows")
        if 0 not in todo and load_commit(self.path, shard).tokens_sha256 != digest:
            raise ValueError(f"shard {shard} is committed with different tokens than these activations")
        for part in todo:
            record = self._write_part(shard, part, described, digest, acts, stats or {})
        with self._guard:
            del self._missing[shard]
        return record

    def _write_part(
        self,
        shard: int,
        part: int,
        described: Mapping[str, NDArray[Any]],
        digest: str,
        acts: Mapping[str, Tensor | NDArray[Any]],
        stats: Mapping[str, SiteStats],
    ) -> CommitRecord:
        """Writes the arrays of one part of a shard, then its commit."""
        names = set(self.parts.of(shard)[part])
        files: dict[str, ChunkFile] = {}
        for name in described.keys() & names:
            if self._write_chunk(name, shard, described[name], files) is not described[name]:
                raise DataError(
                    f"shard {shard} of {shown(self.path)} holds other {name} than this harvest has",
                    hint="the dataset has changed, or another harvest writes there: choose another cache name",
                )
        n_seq = len(described["tokens"])
        flags = described["flags"].reshape(-1)
        measured: dict[str, SiteStats] = {}
        for site in (site for site in self.layout.sites if site.name in names):
            stored = _stored(acts[site.name], site, n_seq * self.layout.ctx)
            if site.quantised:
                stored = self._write_quantised(site, shard, stored, files)
                kept = stored
            else:
                kept = self._write_chunk(site.name, shard, stored, files)
            known = stats.get(site.name) if kept is stored else None
            measured[site.name] = known or site_stats(kept, self.layout.ctx, flags)
        for folder in sorted({(self.path / ARRAYS / name).parent for name in files} if self.mirror is None else ()):
            self._folders.sync(folder)
        record = CommitRecord(
            self.parts.owners(shard)[part], shard, n_seq, int(text_rows(flags).sum()), digest, files, measured
        )
        if self.mirror is not None:
            return commit(self.mirror, part, record)
        write_sealed(commit_path(self.path, shard, part), record.to_dict())
        return record

    def finish(self, n_seq: int | None = None, extra: Mapping[str, Any] | None = None) -> Path:
        """Merges the statistics, finds the massive rows and writes the manifest, which makes the cache complete.

        Massive rows need a median over the whole cache, so every row is read once more. Releases the lock.

        Args:
            n_seq: sequences written, if the data ended before the plan did.
            extra: more JSON-able entries for the manifest (counts, resolved revisions).

        Raises:
            DataError: a shard is missing, or a shard other than the last is short.
        """
        self.refresh()
        parts = self._final_parts(n_seq)
        layout = parts.layout
        n_tokens, digest, totals = self._merged(parts)
        write_metadata(self.path, layout)
        if self.mirror is not None:
            publish_final(self.mirror, layout)
        manifest = self._plan | {
            "layout": layout.to_dict(),
            "n_seq": layout.n_seq,
            "n_tokens": n_tokens,
            "bytes": layout.bytes_on_disk(),
            "commits_sha256": digest,
            "statistics": {site: total.to_dict() for site, total in totals.items()},
            "extra": dict(extra or {}),
        }
        manifest["massive"] = massive_entry(
            Cache(self.path, manifest, layout, list(range(layout.n_shards)), True, parts, mirror=self.mirror)
        )
        # The manifest goes last: a reader that finds it finds everything it names. Finishing a finished cache again
        # computes the same manifest, and then must not touch the file.
        if not (self.path / MANIFEST).exists() or read_file(self.path / MANIFEST) != sealed_bytes(manifest):
            if self.mirror is None:
                write_sealed(self.path / MANIFEST, manifest)
            else:
                publish(self.mirror, MANIFEST, sealed_bytes(manifest))
        self.layout, self.parts, self.complete = layout, parts, True
        self.close()
        return self.path / MANIFEST

    def _planned_parts(self, n_seq: int | None) -> Parts:
        """The shards and their parts, of so many sequences if the data ended before the plan did."""
        layout, generations = self.layout, self.parts.generations
        if n_seq is not None:
            layout = replace(layout, n_seq=n_seq + self.parts.padding)
            generations = (*generations[:-1], replace(generations[-1], n_seq=layout.n_seq))
        return Parts(layout, generations)

    def _final_parts(self, n_seq: int | None) -> Parts:
        """The shards and their parts as they turned out. Raises DataError when one of them has no commit."""
        parts = self._planned_parts(n_seq)
        layout = parts.layout
        commits = commits_of(self.path)
        missing = parts.missing(commits)
        beyond = max((shard for shard, _ in commits), default=-1)
        if missing or beyond >= layout.n_shards:
            found = (
                f"shards {_some(sorted(missing))} have no commit" if missing else f"shard {beyond} lies beyond the end"
            )
            raise DataError(
                f"{shown(self.path)} cannot be finished with {layout.n_seq} sequences: {found}",
                hint="run the same harvest again: it writes the missing shards",
            )
        if self.mirror is None:
            check_sizes(self.path, parts.expected_files(commits))
        else:
            check_objects(self.mirror, parts.expected_files(commits))
        return parts

    def _merged(self, parts: Parts) -> tuple[int, str, dict[str, SiteStats]]:
        """(tokens, sha256 of all commit files, statistics of each site) over all shards.

        Added up in shard order: float64 sums depend on their order, and the manifest must not depend on who wrote what.
        """
        totals = {site.name: SiteStats.zeros(site.width, parts.layout.ctx) for site in parts.layout.sites}
        n_tokens = 0
        digest = hashlib.sha256()
        for shard in range(parts.layout.n_shards):
            owners = parts.owners(shard)
            for part in owners:
                digest.update(read_file(commit_path(self.path, shard, part)))
            record = load_shard(self.path, shard, owners)
            expected = parts.sequences(shard)
            if record.sequences != expected:
                raise DataError(
                    f"shard {shard} of {self.path} holds {record.sequences} sequences, expected {expected}",
                    hint="run the same harvest again: it writes the missing shards",
                )
            n_tokens += record.tokens
            totals = {site: total + record.stats[site] for site, total in totals.items()}
        return n_tokens, digest.hexdigest(), totals

    def close(self) -> None:
        """Releases the lock. Committed shards stay."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        refused = isinstance(error, (UsageError, DataError))
        if refused and self._share.world == 1 and is_empty(self.path):  # a refused start leaves nothing to resume
            _clear(self.path)
        self.close()

    def _write_chunk(self, name: str, shard: int, stored: NDArray[Any], files: dict[str, ChunkFile]) -> NDArray[Any]:
        """Writes one chunk file. Returns what is in it: in a bucket, perhaps rows that another writer put there."""
        array = self.layout.arrays[name]
        payload = as_bytes(stored)
        missing = (array.payload_bytes - len(payload)) // array.dtype.itemsize
        rest = as_bytes(np.full(missing, array.fill, array.dtype))
        crc = crc32c(rest, crc32c(payload))
        content: list[NDArray[Any] | bytes] = [payload, rest, array.trailer(crc)]
        if self.mirror is None:
            write_file(self.path / ARRAYS / array.file(shard), content)
        elif (theirs := self.mirror.chunks.put(array, shard, content, crc)) is not None:
            crc, stored = crc32c(theirs), payload_rows(theirs, array, len(stored)).copy()
        files[array.file(shard)] = ChunkFile(array.file_bytes, crc)
        return stored

    def _write_quantised(
        self, site: SiteSpec, shard: int, bits: NDArray[Any], files: dict[str, ChunkFile]
    ) -> NDArray[Any]:
        """Writes codes and scales of bfloat16 bits. Returns the bits a reader gets back: statistics describe those."""
        assert site.quantised is not None
        assert site.scale is not None
        values = torch.from_numpy(bits).view(torch.bfloat16)
        codes, scales = quantise(values, site.quantised)
        # the scales first: in a bucket, all codes that anybody writes are then codes under the scales that are there
        own = scales.numpy()
        if (kept := self._write_chunk(site.scale, shard, own, files)) is not own:
            scales = torch.from_numpy(kept)
            codes = codes_under(values, scales, site.quantised)
        codes = torch.from_numpy(self._write_chunk(site.name, shard, codes.numpy(), files))
        found: NDArray[Any] = dequantise(codes, scales, site.quantised).view(torch.uint16).numpy()
        return found


def _check_built_on(path: Path, standing: Standing, mirror: Mirror | None) -> None:
    """What is built on must be this cache's own, and whole. Raises DataError."""
    commits = commits_of(path)
    if mirror is None:  # a bucket's chunk files are measured at the end
        check_sizes(path, standing.parts.expected_files(commits))
    for shard, part in commits:
        if shard < standing.layout.n_shards and (owner := standing.parts.owners(shard).get(part)):
            load_checksums(path, shard, {part: owner})
    if not standing.latest and standing.parts.missing(commits):
        raise DataError(
            f"{shown(path)} has grown since it had this config, and some of its shards have no commit",
            hint=f"{command('harvest', '-c', shown(path))} writes them with its present config",
        )


def _pulled(mirror: Mirror) -> Path:
    """The folder of a cache in a bucket that is to be written.

    Raises:
        DataError: other objects lie at its address.
    """
    mirror.pull(arrays=True)
    if not (mirror.folder / PLAN).exists() and (foreign := mirror.foreign()):
        raise DataError(
            f"{mirror.address} is not a cache (no {PLAN}) and is not empty: found {_some(foreign)}",
            hint="choose another cache name",
        )
    return mirror.folder


def _manifest(path: Path) -> dict[str, Any] | None:
    return read_head(path / MANIFEST) if (path / MANIFEST).exists() else None


def _refuse_foreign_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file, expected a cache folder", hint="choose another cache name")
    if path.is_dir() and not (path / PLAN).exists():
        ours = {PLAN, copy_of(path / PLAN).name, COMMITS, ARRAYS, LOCK, MIRROR}
        foreign = sorted(p.name for p in path.iterdir() if p.name not in ours and not p.name.startswith((LOCK, PLAN)))
        if foreign or commits_of(path):
            raise DataError(
                f"{path} is not a cache (no {PLAN}) and is not empty: found {_some(foreign or [COMMITS])}",
                hint="choose another cache name",
            )


def _set_up(path: Path, standing: Standing) -> None:
    """What one writer does for all: sweeps leftovers, then the plan before the arrays, so that a folder with arrays
    always says what they are of. Everything is on disk before the first shard."""
    if standing.replaces:
        _clear(path)
    for leftover in partial_files(path):
        leftover.unlink(missing_ok=True)
    (path / COMMITS).mkdir(exist_ok=True)
    for file in (standing.file, copy_of(standing.file)):
        if not file.exists():
            write_sealed(file, standing.plan)
    sync_folder(path)
    sync_folder(path.parent)
    with explained_full_disk(path, standing.layout.bytes_on_disk()):
        # arrays may already be longer than this generation, if a growth stopped, so those there stay as they are
        write_metadata(path, standing.layout, keep=bool(commits_of(path)))


def _clear(path: Path) -> None:
    """Removes a cache without commits. The plan goes last: until then, a second try clears the folder again."""
    for folder in (ARRAYS, COMMITS, "tokenizer"):
        shutil.rmtree(path / folder, ignore_errors=True)
    for file in (*path.glob("documents*.jsonl*"), copy_of(path / PLAN), path / PLAN):
        file.unlink(missing_ok=True)
    sync_folder(path)


def _checked(array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if array.shape != shape:
        raise ValueError(f"found an array of shape {array.shape}, expected {shape}")
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "iu":
        raise ValueError(f"found {array.dtype}, expected {dtype}")
    converted = array.astype(dtype)
    if not np.array_equal(converted, array):
        raise ValueError(f"a value does not fit into {dtype}: found up to {array.max()}")
    return converted


def _stored(acts: Tensor | NDArray[Any], site: SiteSpec, rows: int) -> NDArray[Any]:
    """The rows in C order in their logical dtype: uint16 bits of bfloat16, or float32."""
    if isinstance(acts, Tensor):
        found = str(acts.dtype).removeprefix("torch.")
        if found != site.logical_dtype:
            raise ValueError(f"site {site.name}: found a tensor of {found}, expected {site.logical_dtype}")
        acts = acts.detach().cpu().contiguous()
        stored = (acts.view(torch.uint16) if site.logical_dtype == "bfloat16" else acts).numpy()
    else:
        stored = np.ascontiguousarray(acts)
    dtype = STORED[site.logical_dtype]
    if stored.dtype != dtype or stored.shape != (rows, site.width):
        raise ValueError(
            f"site {site.name}: found {stored.dtype} {stored.shape}, expected {dtype} {(rows, site.width)}"
        )
    return stored


def _some(items: list[Any]) -> str:
    return ", ".join(str(item) for item in items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
