"""Checks one shard: chunk files against their commit, and the commit's counts and statistics against the payloads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError
from .commits import ChunkFile, CommitRecord, commit_path, load_commit
from .files import crc32c, read_file
from .format import ARRAYS, CODES, TOKEN_ARRAYS, SiteSpec, StoredArray
from .growth import Parts
from .mirror import mirror_of
from .problems import Problem
from .quantise import dequantise
from .rows import text_rows
from .stats import Moments, SiteStats, site_stats

Payload = NDArray[np.uint8]

ROUNDING = 1e-6
"""Relative difference of sums that the same program leaves between processors."""


@dataclass
class Checked:
    """What is known of one shard.

    Attributes:
        records: part → its commit, where that is sound.
        problems: everything found.
    """

    records: dict[int, CommitRecord] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class ShardChecker:
    """Checks shards, from several threads.

    Args:
        parts: of the latest generation.
        finished: that generation has its manifest, so every shard has all its sequences.
        advance: told the bytes that were read.
    """

    def __init__(
        self,
        path: Path,
        parts: Parts,
        commits: Collection[tuple[int, int]],
        finished: bool,
        advance: Callable[[float], None],
    ) -> None:
        self.mirror = mirror_of(path)
        self.path, self.parts, self.commits, self.finished = path, parts, commits, finished
        self.layout = parts.layout
        self.bytes = 0
        self._advance, self._lock = advance, threading.Lock()

    def check(self, shard: int) -> Checked:
        """Reads every file of a shard that a commit names."""
        found = Checked()
        payloads: dict[str, Payload] = {}
        for part, owner in self.parts.owners(shard).items():
            if (shard, part) not in self.commits:
                continue
            file = commit_path(self.path, shard, part)

            def report(path: Path, was: str, expected: str, file: Path = file) -> None:
                # the commit first: without it the chunk file does not exist for anybody
                found.problems.append(Problem(path, was, expected, drop=(file, path), shard=shard))

            try:
                record = load_commit(self.path, shard, part, owner)
            except DataError as error:
                report(file, error.message, "a commit of this shard and cache")
                continue
            if names := set(record.files) ^ set(self.parts.files(shard, part)):
                report(file, f"another set of chunk files ({', '.join(sorted(names))})", "the layout's")
                continue
            before = len(found.problems)
            for name in self.parts.of(shard)[part]:
                array = self.layout.arrays[name]
                payload = self._payload(array, shard, record.files[array.file(shard)], report)
                if payload is not None:
                    payloads[name] = payload
            for was, expected in self._differences(shard, part, record, payloads):
                report(file, was, expected)
            if len(found.problems) == before:
                found.records[part] = record
        return found

    def _payload(
        self, array: StoredArray, shard: int, expected: ChunkFile, report: Callable[[Path, str, str], None]
    ) -> Payload | None:
        """The payload of a sound chunk file; None, and a report, of any other."""
        file = self.path / ARRAYS / array.file(shard)
        try:
            if self.mirror is None:
                data = np.frombuffer(read_file(file), np.uint8)
            else:  # the bucket's own bytes, not a copy of them
                data = self.mirror.chunks.read(array, shard)
        except DataError as error:
            report(file, "no file" if "missing" in error.message else error.message, f"{array.file_bytes:,} bytes")
            return None
        with self._lock:
            self.bytes += len(data)
        self._advance(len(data))
        if len(data) != array.file_bytes or expected.bytes != array.file_bytes:
            report(file, f"{len(data):,} bytes", f"{array.file_bytes:,} bytes")
            return None
        payload, trailer = data[: array.payload_bytes], data[array.payload_bytes :].tobytes()
        actual, wanted = crc32c(payload), array.trailer(expected.crc32c)
        if actual != expected.crc32c:
            report(file, f"crc32c {actual:08x}", f"{expected.crc32c:08x}")
            return None
        if trailer != wanted:
            report(file, f"a trailer of {trailer.hex()}", wanted.hex())
            return None
        return payload

    def _differences(
        self, shard: int, part: int, record: CommitRecord, payloads: Mapping[str, Payload]
    ) -> Iterator[tuple[str, str]]:
        """(found, expected) wherever the commit does not say what the payloads say."""
        size = self.parts.sequences(shard)
        # in an unfinished cache the data may end within this shard
        if record.sequences > size or (self.finished and record.sequences != size):
            yield f"{record.sequences} sequences", f"{size}"
            return
        rows = record.sequences * self.layout.ctx
        described = [array.name for array in TOKEN_ARRAYS]
        if not set(described) <= payloads.keys():
            return
        digest = hashlib.sha256(payloads["tokens"][: rows * 4].tobytes()).hexdigest()
        if digest != record.tokens_sha256:
            yield f"a token slice with sha256 {record.tokens_sha256}", digest
        flags = payloads["flags"][:rows]
        counted = int(text_rows(flags).sum())
        if counted != record.tokens:
            yield f"{record.tokens} tokens", f"{counted}"
        if part == 0 or (shard, 0) not in self.commits:
            yield from self._padding(payloads, rows)
        names = set(self.parts.of(shard)[part])
        for site in (site for site in self.layout.sites if site.name in names):
            if not set(site.arrays) <= payloads.keys():
                continue
            measured = site_stats(_rows(site, payloads, rows), self.layout.ctx, flags)
            if site.name not in record.stats or not _same(record.stats[site.name], measured):
                yield f"statistics of {site.name} that differ", "those of its rows"

    def _padding(self, payloads: Mapping[str, Payload], rows: int) -> Iterator[tuple[str, str]]:
        """Places after the last sequence of a short shard hold the fill value."""
        for array in TOKEN_ARRAYS:
            rest = payloads[array.name].view(array.dtype)[rows:]
            if (rest != array.fill).any():
                yield f"values of {array.name} after the last sequence", f"{array.fill}"


def _rows(site: SiteSpec, payloads: Mapping[str, Payload], rows: int) -> NDArray[Any]:
    """[rows, d] as bits of bfloat16 or as float32: the values that a reader gets."""
    stored = payloads[site.name].view(site.stored_dtype).reshape(-1, site.width)[:rows]
    if site.quantised is None:
        return stored
    scales = payloads[str(site.scale)].view("<f4")[:rows]
    codes = torch.from_numpy(stored.astype(CODES[site.quantised]))
    values: NDArray[Any] = dequantise(codes, torch.from_numpy(scales.copy()), site.quantised).view(torch.uint16).numpy()
    return values


def _same(found: SiteStats, measured: SiteStats) -> bool:
    """Whether two statistics are of the same rows: counts equal, sums equal but for the rounding of a processor."""
    if found.nonfinite != measured.nonfinite or not np.array_equal(found.position_n, measured.position_n):
        return False
    if not _close(found.position_sum_norm, measured.position_sum_norm, measured.position_sum_norm):
        return False
    return all(_same_moments(a, b) for a, b in ((found.first, measured.first), (found.rest, measured.rest)))


def _same_moments(a: Moments, b: Moments) -> bool:
    if a.n != b.n or a.sum.shape != b.sum.shape or a.sum_sq.shape != b.sum_sq.shape:
        return False
    scale = np.sqrt(b.n * b.sum_sq)
    norms = np.array([a.sum_norm, a.sum_norm_sq]), np.array([b.sum_norm, b.sum_norm_sq])
    return _close(a.sum, b.sum, scale) and _close(a.sum_sq, b.sum_sq, b.sum_sq) and _close(*norms, norms[1])


def _close(a: NDArray[np.float64], b: NDArray[np.float64], scale: NDArray[np.float64]) -> bool:
    return a.shape == b.shape and bool((np.abs(a - b) <= ROUNDING * np.abs(scale)).all())
