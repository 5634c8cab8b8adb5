"""The files of a run that grow or change beside its checkpoints: size and sha256 of each at a moment.

A checkpoint and the finished coder record them, so that no file of a run is without a witness.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..cache.files import below, sync_folder, unreadable

Records = Mapping[str, Mapping[str, Any]]
"""Path below the run's folder → {"bytes", "sha256"}."""

NOTE = "note.json"
"""What training noticed about a run: that it diverged."""

GROWING = "metrics.jsonl"
"""Lines are appended to it, so a record covers its first bytes."""

RECORD = "final/record.json"
"""What the run was and what it ended with."""

_FILES = ("config.yaml", "provenance.json", NOTE, RECORD, GROWING)
_FOLDERS = ("samples", "anti_duplication_logs", "progress", "final/ema")
_PIECE = 1 << 20


def records_of(run: Path) -> dict[str, dict[str, Any]]:
    """The records of a run's files as they are now."""
    found = {}
    for file in _files(run):
        n_bytes = file.stat().st_size
        found[str(file.relative_to(run))] = {"bytes": n_bytes, "sha256": _sha256(file, n_bytes)}
    return found


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
        with file.open("rb") as handle:
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
    try:
        with file.open("rb") as data:
            while n_bytes > 0 and (piece := data.read(min(_PIECE, n_bytes))):
                digest.update(piece)
                n_bytes -= len(piece)
    except OSError as error:
        raise unreadable(file, error) from None
    return digest.hexdigest() if not n_bytes else ""
