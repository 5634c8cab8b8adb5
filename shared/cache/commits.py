"""Commit files: the proof that a shard is complete. One JSON file per shard, written after every file that it names.

A commit is durable because of the order of three steps, each synced before the next begins: chunk files are fsynced and
renamed to their names, their folders are fsynced, and the commit is written in the same way. A power cut between two
steps leaves chunk files without a commit, which nobody reads; it never leaves a commit without its chunk files.

A cache that grew by sites has further commits for its earlier shards (shared.cache.growth).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from ..errors import DataError
from .files import read_json
from .format import ARRAYS, COMMITS, commit_name, shard_of_commit
from .stats import SiteStats


@dataclass(frozen=True)
class ChunkFile:
    """Size of a chunk file and the CRC-32C of its payload."""

    bytes: int
    crc32c: int


@dataclass(frozen=True)
class CommitRecord:
    """The content of one commit file.

    Attributes:
        shard: its index.
        sequences: sequences written; only the last shard may hold fewer than the chunk has room for.
        tokens: rows that are not padding.
        tokens_sha256: hash of the written sequences' tokens, int32 little-endian.
        files: path below ``acts.zarr`` → size and checksum.
        stats: site → statistics of this shard.
    """

    shard: int
    sequences: int
    tokens: int
    tokens_sha256: str
    files: Mapping[str, ChunkFile]
    stats: Mapping[str, SiteStats]

    def to_dict(self) -> dict[str, Any]:
        return {
            "shard": self.shard,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "tokens_sha256": self.tokens_sha256,
            "files": {name: {"bytes": f.bytes, "crc32c": f"{f.crc32c:08x}"} for name, f in self.files.items()},
            "statistics": {site: stats.to_dict() for site, stats in self.stats.items()},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            shard=int(value["shard"]),
            sequences=int(value["sequences"]),
            tokens=int(value["tokens"]),
            tokens_sha256=str(value["tokens_sha256"]),
            files={name: ChunkFile(int(f["bytes"]), int(f["crc32c"], 16)) for name, f in value["files"].items()},
            stats={site: SiteStats.from_dict(stats) for site, stats in value["statistics"].items()},
        )


def commit_path(path: Path, shard: int, part: int = 0) -> Path:
    return path / COMMITS / commit_name(shard, part)


def commits_of(path: Path) -> set[tuple[int, int]]:
    """(shard, part) of every commit file of a cache (shared.cache.growth.Parts)."""
    try:
        names = [entry.name for entry in (path / COMMITS).iterdir()]
    except FileNotFoundError:
        return set()
    return {found for name in names if (found := shard_of_commit(name)) is not None}


def load_commit(path: Path, shard: int, part: int = 0) -> CommitRecord:
    """Reads one commit file.

    Raises:
        DataError: the file is missing, or is not a commit of this shard.
    """
    file = commit_path(path, shard, part)
    value = read_json(file)
    try:
        record = CommitRecord.from_dict(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file} is not a commit of this format: {error!r}", hint=f"pipeline verify {path}") from None
    if record.shard != shard:
        raise DataError(f"{file} commits shard {record.shard}, expected {shard}", hint=f"pipeline verify {path}")
    return record


def load_shard(path: Path, shard: int, parts: Iterable[int]) -> CommitRecord:
    """All parts of a shard as one record.

    Raises:
        DataError: a part is missing or is not a commit of this shard, or the parts belong to different tokens.
    """
    records = [load_commit(path, shard, part) for part in parts]
    whole = records[0]
    for part, record in zip(list(parts)[1:], records[1:], strict=True):
        if (record.sequences, record.tokens_sha256) != (whole.sequences, whole.tokens_sha256):
            raise DataError(
                f"{commit_path(path, shard, part)} and {commit_path(path, shard)} belong to different tokens",
                hint=f"pipeline verify {path}",
            )
        whole = replace(whole, files={**whole.files, **record.files}, stats={**whole.stats, **record.stats})
    return whole


def size_problems(path: Path, expected: Mapping[str, int]) -> list[tuple[Path, str, str]]:
    """Chunk files of the wrong size: (file, found, expected). One listing per array.

    Args:
        expected: path below ``acts.zarr`` → bytes.
    """
    root = path / ARRAYS
    found: dict[str, int] = {}
    for folder in [*root.iterdir()] if root.is_dir() else []:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                found |= {f"{folder.name}/{entry.name}": entry.stat().st_size for entry in entries}
    problems = []
    for name, wanted in expected.items():
        size = found.get(name)
        if size != wanted:
            problems.append((root / name, "no file" if size is None else f"{size:,} bytes", f"{wanted:,} bytes"))
    return problems


def check_sizes(path: Path, expected: Mapping[str, int]) -> None:
    """Raises a DataError that names the first chunk file of the wrong size, and how many others there are."""
    problems = size_problems(path, expected)
    if problems:
        file, found, wanted = problems[0]
        more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise DataError(
            f"{file} has the wrong size: found {found}, expected {wanted}{more}", hint=f"pipeline verify {path}"
        )
