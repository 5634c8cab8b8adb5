"""The files of a run that grow or change beside its checkpoints: size and sha256 of each at a moment.

A checkpoint and the finished coder record them, so that no file of a run is without a witness.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..cache.files import below, sync_folder, unreadable

Records = Mapping[str, Mapping[str, Any]]
"""Path below the run's folder → {"bytes", "sha256"}."""

NOTE = "note.json"
"""What training noticed about a run: that it diverged."""

GROWING = "metrics.jsonl"
"""Lines are appended to it, so a record covers its first bytes."""

RECORD = "final/record.json"
"""What the run was and what it ended with."""

_REPLACED = ("anti_duplication_logs/table.md", "progress/index.html")
"""A table and a page that follow from the files beside them, and are replaced as the run goes on."""

_FILES = ("config.yaml", "provenance.json", NOTE, RECORD, GROWING)
_FOLDERS = ("samples", "anti_duplication_logs", "progress", "final/ema")
_PIECE = 1 << 20


def records_of(run: Path) -> dict[str, dict[str, Any]]:
    """The records of a run's files as they are now."""
    return FileRecords(run).now()


class FileRecords:
    """The records of a run's files, again and again while it trains.

    A file that was not replaced since the last time is not read again, and of the one that grows only what is new: what
    a checkpoint records is known in milliseconds, however long the run.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}
        self._grown: tuple[int, int, Any] = (-1, 0, hashlib.sha256())

    def now(self) -> dict[str, dict[str, Any]]:
        """The records at this moment.

        Raises:
            DataError: a file cannot be read.
        """
        found = {}
        for file in _files(self._run):
            stat = file.stat()
            if file.name == GROWING:
                digest = self._growing(file, stat)
            else:
                version = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
                known, digest = self._known.get(file, (None, ""))
                if known != version:
                    digest = _sha256(file, stat.st_size)
                    self._known[file] = (version, digest)
            found[str(file.relative_to(self._run))] = {"bytes": stat.st_size, "sha256": digest}
        return found

    def _growing(self, file: Path, stat: os.stat_result) -> str:
        """The sha256 of a file that lines were appended to since the last time, or that is another one now."""
        inode, n_bytes, digest = self._grown
        if inode != stat.st_ino or n_bytes > stat.st_size:
            n_bytes, digest = 0, hashlib.sha256()
        with _reading(file), file.open("rb") as data:
            data.seek(n_bytes)
            _update(digest, data, stat.st_size - n_bytes)
        self._grown = (stat.st_ino, stat.st_size, digest)
        return str(digest.hexdigest())


def written_again(name: str) -> bool:
    """Whether a resumed run writes a file again: the one in its folder may be of a step after the checkpoint."""
    return name.startswith(("samples/", "final/")) or name in _REPLACED


def wrong_records(run: Path, records: Records, *, final: bool = False) -> list[str]:
    """The files that are not as recorded, are missing, or are no regular files.

    Args:
        final: the records were made at the run's end, so that nothing was added since, to the metrics neither.

    Raises:
        DamagedError: a name leads out of the run's folder; whoever repairs the run must not touch what is there.
    """
    return [
        name
        for name, record in records.items()
        if not _as_recorded(run, name, record, grows=name == GROWING and not final)
    ]


def _as_recorded(run: Path, name: str, record: Mapping[str, Any], *, grows: bool) -> bool:
    file = below(run, name)
    if not file.is_file() or not file.resolve().is_relative_to(run.resolve()):
        return False
    if not grows and file.stat().st_size != record["bytes"]:
        return False
    return _sha256(file, record["bytes"]) == str(record["sha256"])


def sync_all(run: Path) -> None:
    """What was logged and written so far survives a power cut."""
    for file in _files(run):
        with suppress(FileNotFoundError), file.open("rb") as handle:  # the run may replace one meanwhile
            os.fsync(handle.fileno())
    for folder in (run, *(run / name for name in _FOLDERS)):
        if folder.is_dir():
            sync_folder(folder)


def _files(run: Path) -> Iterator[Path]:
    yield from (run / name for name in _FILES if (run / name).is_file())
    for folder in _FOLDERS:
        yield from sorted(file for file in (run / folder).glob("*") if file.is_file() and file.suffix != ".partial")


def _sha256(file: Path, n_bytes: int) -> str:
    digest = hashlib.sha256()
    with _reading(file), file.open("rb") as data:
        return digest.hexdigest() if not _update(digest, data, n_bytes) else ""


def _update(digest: Any, data: BinaryIO, n_bytes: int) -> int:
    """Hashes the next `n_bytes`; how many of them are missing."""
    while n_bytes > 0 and (piece := data.read(min(_PIECE, n_bytes))):
        digest.update(piece)
        n_bytes -= len(piece)
    return n_bytes


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unreadable(file, error) from None
