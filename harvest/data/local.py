"""Documents in files on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...shared.errors import UsageError
from . import tables, texts
from .documents import Columns, Document
from .files import DataFile, kind_of
from .reading import Reading

TABLE_READERS: dict[str, Callable[[Path, Columns], tables.Rows]] = {
    ".jsonl": tables.json_lines,
    ".ndjson": tables.json_lines,
    ".json": tables.json_file,
    ".csv": tables.csv_file,
    ".tsv": tables.csv_file,
    ".parquet": tables.parquet,
    ".arrow": tables.arrow,
}
"""Suffix of a table → its reader."""

DOCUMENT_READERS: dict[str, Callable[[Path], texts.Documents]] = {
    **dict.fromkeys(texts.SUFFIXES, texts.text_file),
    ".tar": texts.tar_file,
    ".tgz": texts.tar_file,
}
"""Suffix of a file of documents → its reader."""

_FINGERPRINT_BYTES = 1 << 20


def documents(files: Sequence[DataFile], columns: Columns, reading: Reading) -> Iterator[Document]:
    """Every document of the files, in order.

    Raises:
        BadRowError: a row cannot be used, and the reading does not skip such rows; names the file and the line or row.
        UsageError: a file cannot be read, or a table lacks a column.
    """
    for file in files:
        kind = kind_of(file.path) or ""
        if kind in TABLE_READERS:
            rows = TABLE_READERS[kind](file.path, columns)
            yield from reading.each(rows, lambda row: columns.document(*row))
        elif columns.format != "text":
            raise UsageError(
                f"harvest.format: {file.path} is text, found format: {columns.format}, which requires a table",
                hint="--set harvest.format=text",
            )
        else:
            yield from reading.each(DOCUMENT_READERS[kind](file.path), lambda document: document)


def count_rows(files: Sequence[DataFile]) -> list[int | None]:
    """Rows of each file where that is quickly known: of tables by their metadata or lines, of a text file 1."""
    found = []
    for file in files:
        kind = kind_of(file.path) or ""
        found.append(1 if kind in texts.SUFFIXES else tables.count_rows(file.path, kind))
    return found


def fingerprint(files: Sequence[DataFile]) -> str:
    """sha256 over the files' names, sizes, and first and last mebibyte: cheap, and enough to detect another dataset.

    The name of an only file decides nothing but how it is read, so only its kind counts.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.path.stat().st_size
        name = (kind_of(file.path) or "") if len(files) == 1 else file.name
        digest.update(f"{name}\0{size}\0".encode())
        with file.path.open("rb") as handle:
            digest.update(handle.read(_FINGERPRINT_BYTES))
            if size > _FINGERPRINT_BYTES:
                handle.seek(max(_FINGERPRINT_BYTES, size - _FINGERPRINT_BYTES))
                digest.update(handle.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()
