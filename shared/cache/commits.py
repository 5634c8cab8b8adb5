"""Commit files: the proof that a shard is complete. One JSON file per shard, written after every file that it names.

A commit is durable because of the order of three steps, each synced before the next begins: chunk files are fsynced and
renamed to their names, their folders are fsynced, and the commit is written in the same way. A power cut between two
steps leaves chunk files without a commit, which nobody reads; it never leaves a commit without its chunk files.

A cache that grew by sites has further commits for its earlier shards (shared.cache.growth).

A commit carries the sha256 of its own file, and the identity of the cache it belongs to: neither a flipped bit nor a
commit copied from elsewhere can vouch for anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from ..errors import DataError, repair_command
from ..schemas import Commit, checked
from .files import read_sealed
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
        identity: of the generation of the cache that it belongs to.
        shard: its index.
        sequences: sequences written; only the last shard may hold fewer than the chunk has room for.
        tokens: rows that are not padding.
        tokens_sha256: hash of the written sequences' tokens, int32 little-endian.
        files: path below ``acts.zarr`` → size and checksum.
        stats: site → statistics of this shard.
    """

    identity: str
    shard: int
    sequences: int
    tokens: int
    tokens_sha256: str
    files: Mapping[str, ChunkFile]
    stats: Mapping[str, SiteStats]

    def to_dict(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
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
            identity=str(value["identity"]),
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


def load_commit(path: Path, shard: int, part: int = 0, identity: str | None = None) -> CommitRecord:
    """Reads one commit file.

    Args:
        identity: of the generation that it must belong to; None: any.

    Raises:
        DataError: the file is missing or damaged, or is not the commit of this shard of this cache.
    """
    file = commit_path(path, shard, part)
    try:
        record = CommitRecord.from_dict(_read(file, shard, identity))
    except DataError as error:
        if error.hint is not None:
            raise
        raise DataError(f"{file} is not a commit of this format: {error.message}", repair_command(path)) from None
    return record


def load_checksums(path: Path, shard: int, owners: Mapping[int, str]) -> dict[str, int]:
    """Path below ``acts.zarr`` → CRC-32C of the payload, of all parts of a shard. Raises DataError as `load_commit`."""
    found: dict[str, int] = {}
    for part, identity in owners.items():
        files = _read(commit_path(path, shard, part), shard, identity)["files"]
        found |= {name: int(file["crc32c"], 16) for name, file in files.items()}
    return found


def _read(file: Path, shard: int, identity: str | None) -> dict[str, Any]:
    value = checked(Commit, read_sealed(file), file)
    if value["shard"] != shard:
        raise DataError(f"{file} commits shard {value['shard']}, expected {shard}", repair_command(file))
    if identity is not None and value["identity"] != identity:
        raise DataError(
            f"{file} belongs to another cache: identity {value['identity']}, expected {identity}", repair_command(file)
        )
    return value


def load_shard(path: Path, shard: int, owners: Mapping[int, str]) -> CommitRecord:
    """All parts of a shard as one record.

    Args:
        owners: part → identity of the generation that it belongs to (shared.cache.growth.Parts.owners).

    Raises:
        DataError: a part is missing, damaged or not a commit of this shard, or the parts belong to different tokens.
    """
    records = {part: load_commit(path, shard, part, identity) for part, identity in owners.items()}
    whole, *more = records.items()
    merged = whole[1]
    for part, record in more:
        if (record.sequences, record.tokens_sha256) != (merged.sequences, merged.tokens_sha256):
            raise DataError(
                f"{commit_path(path, shard, part)} and {commit_path(path, shard, whole[0])} belong to different tokens",
                repair_command(path),
            )
        merged = replace(merged, files={**merged.files, **record.files}, stats={**merged.stats, **record.stats})
    return merged


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
                found |= {f"{folder.name}/{entry.name}": _size(entry) for entry in entries}
    problems = []
    for name, wanted in expected.items():
        size = found.get(name)
        if size != wanted:
            problems.append(
                (
                    root / name,
                    "no file" if size is None else "no regular file" if size < 0 else f"{size:,} bytes",
                    f"{wanted:,} bytes",
                )
            )
    return problems


def _size(entry: os.DirEntry[str]) -> int:
    """Bytes of a regular file; of anything else (a link, a pipe) -1, which no chunk file has."""
    return entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else -1


def check_sizes(path: Path, expected: Mapping[str, int]) -> None:
    """Raises a DataError that names the first chunk file of the wrong size, and how many others there are."""
    problems = size_problems(path, expected)
    if problems:
        file, found, wanted = problems[0]
        more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise DataError(f"{file} has the wrong size: found {found}, expected {wanted}{more}", repair_command(path))
