"""The documents of a cache: ``documents.jsonl``, one line for each ``doc_id`` that has a row.

A line is ``{"doc_id", "source", "domain", "labels", "target_row"}``; everything but ``doc_id`` may be missing. The
specification is docs/cache-format.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, repair_command
from .files import PARTIAL, explained_full_disk, inside, sync_folder
from .first_touch import compare_sha256_once
from .format import MANIFEST
from .growth import read_head

DOCUMENTS = "documents.jsonl"

Label = str | int | float | bool | None


@dataclass(frozen=True)
class DocumentRecord:
    """One document of a cache.

    Attributes:
        doc_id: the value of its rows in the ``doc_id`` array.
        source: its origin: a file and line, or a row of a hub dataset.
        domain: coarse label of its kind; empty if the dataset has none.
        labels: name → value, of the whole document or, in a prompt set, of its target row.
        target_row: row of the cache that a prompt is about; None for an ordinary document.
    """

    doc_id: int
    source: str = ""
    domain: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    target_row: int | None = None

    def to_line(self) -> bytes:
        """Its line, without empty fields."""
        found: dict[str, Any] = {"doc_id": self.doc_id, "source": self.source}
        if self.domain:
            found["domain"] = self.domain
        if self.labels:
            found["labels"] = dict(self.labels)
        if self.target_row is not None:
            found["target_row"] = self.target_row
        return (json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_documents(cache: Path | str) -> Iterator[DocumentRecord]:
    """The documents of a cache folder in the order of their ids; none if the cache has no such file.

    Raises:
        DataError: the file is not the one that the manifest names, or a line does not follow the format.
    """
    path = _current(Path(cache))
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield _record(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DataError(f"{path}:{number} is not a document: {error}", repair_command(path)) from None


def _record(found: Mapping[str, Any]) -> DocumentRecord:
    target = found.get("target_row")
    labels = dict(found.get("labels") or {})
    if not (target is None or (type(target) is int and 0 <= target < 1 << 48)):
        raise ValueError(f"target_row {target!r} is no row")
    if any(isinstance(value, (list, dict)) for value in labels.values()):
        raise ValueError("a label is text, a number, a boolean or null")
    return DocumentRecord(
        int(found["doc_id"]), str(found.get("source", "")), str(found.get("domain") or ""), labels, target
    )


def domains_of(cache: Path | str) -> dict[int, str]:
    """Domain of each document that has one."""
    return {record.doc_id: record.domain for record in read_documents(cache) if record.domain}


def sources_of_rows(doc_id: NDArray[Any], domains: Mapping[int, str]) -> tuple[str, NDArray[np.int64]]:
    """("domain", number of each row's domain) if the data has domains, else ("document", each row's document)."""
    documents: NDArray[np.int64] = doc_id.astype(np.int64)
    if not domains:
        return "document", documents
    number = {name: n for n, name in enumerate(sorted({"", *domains.values()}))}
    of_document = np.full(int(documents.max()) + 1, number[""], np.int64)
    for document, name in domains.items():
        if document < len(of_document):
            of_document[document] = number[name]
    return "domain", of_document[documents]


def document_positions(doc_id: NDArray[Any], padding: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions that restart at 0 with every document of a sequence, and with its padding.

    The model gets these when documents that share a sequence must not attend to each other.

    Args:
        doc_id, padding: [n, ctx].
    """
    kind = np.where(padding, -1, doc_id.astype(np.int64))
    index = np.broadcast_to(np.arange(kind.shape[1]), kind.shape)
    begins = np.zeros_like(kind)
    begins[:, 1:] = np.where(kind[:, 1:] != kind[:, :-1], index[:, 1:], 0)
    return index - np.maximum.accumulate(begins, axis=1)


class DocumentWriter:
    """Writes ``documents.jsonl`` line by line under a temporary name; :meth:`finish` renames it."""

    def __init__(self, cache: Path, name: str = DOCUMENTS) -> None:
        self._path = cache / name
        self._partial = self._path.with_name(self._path.name + PARTIAL)
        self._file = self._partial.open("wb")

    def add(self, records: Iterable[DocumentRecord]) -> None:
        """Raises PipelineError when the disk is full."""
        with explained_full_disk(self._path, 0):
            for record in records:
                self._file.write(record.to_line())

    def finish(self) -> None:
        """Syncs the file and renames it to its final name."""
        with explained_full_disk(self._path, 0):
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._path)
        sync_folder(self._path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


def documents_name(generation: int) -> str:
    """``documents.jsonl``; ``documents.2.jsonl`` for a cache that grew a second time by documents."""
    return f"documents.{generation}.jsonl" if generation else DOCUMENTS


def documents_summary(cache: Path, name: str = DOCUMENTS) -> dict[str, Any]:
    """The file's entry in the manifest: name, sha256 and number of lines."""
    data = hashlib.sha256()
    count = 0
    with (cache / name).open("rb") as lines:
        for line in lines:
            data.update(line)
            count += 1
    return {"file": name, "documents": count, "sha256": data.hexdigest()}


def _current(cache: Path) -> Path:
    """The file named in the manifest: a cache that grew has a new file beside the old one."""
    manifest = read_head(cache / MANIFEST) if (cache / MANIFEST).is_file() else {}
    listed = manifest.get("extra", {}).get("documents")
    if not isinstance(listed, dict) or "file" not in listed:
        return inside(cache, DOCUMENTS)
    path = inside(cache, listed["file"])
    if "sha256" in listed:
        compare_sha256_once(path, str(listed["sha256"]))
    return path
