"""Documents in local files: plain text, JSON lines, Parquet, Arrow (also as saved by `datasets`)."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ...shared.config.registry import did_you_mean
from ...shared.errors import UsageError
from .documents import Columns, Document

Reader = Callable[[Path, Columns], Iterator[Document]]

_FINGERPRINT_BYTES = 1 << 20


def files_of(path: Path, split: str) -> list[Path]:
    """The data files at a path: the file itself, or those below a folder in alphabetical order.

    Raises:
        UsageError: no file of a known kind was found, or a saved dataset lacks the split.
    """
    if path.is_file():
        if _kind(path) is None:
            raise UsageError(
                f"harvest.dataset: {path} has an unknown suffix; expected {', '.join(READERS)}", _convert(path)
            )
        return [path]
    if (
        path / "dataset_dict.json"
    ).is_file():  # written by datasets.DatasetDict.save_to_disk: one folder for each split
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise UsageError(
                f"harvest.dataset_split: {path} has no split {split!r}{did_you_mean(split, splits)}",
                hint=f"its splits: {', '.join(splits)}",
            )
        path = path / split
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and _kind(file) and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        raise UsageError(f"harvest.dataset: no data files found in {path}; expected {', '.join(READERS)}")
    return files


def _convert(path: Path) -> str | None:
    """The command that turns a file of a kind that is not read into one that is; None if there is none to name."""
    separators = {".csv": ",", ".tsv": "\\t"}
    if (separator := separators.get(path.suffix.lower())) is None:
        return "rename a text file to .txt, or write one JSON object a line to a .jsonl file"
    program = (
        f"import csv, json; rows = csv.DictReader(open('{path}', newline=''), delimiter='{separator}'); "
        f"open('{path.with_suffix('.jsonl')}', 'w').writelines(json.dumps(row) + chr(10) for row in rows)"
    )
    return f'python -c "{program}"   (then harvest.dataset={path.with_suffix(".jsonl")}, harvest.text_column=COLUMN)'


def is_data_file(path: Path) -> bool:
    """Whether the name has the suffix of a readable file; the name of a hub dataset has none."""
    return _kind(path) is not None


def documents(files: list[Path], columns: Columns) -> Iterator[Document]:
    """Every document of the files, in order.

    Raises:
        UsageError: a file cannot be read or lacks a column; names the file and, if it has lines, the line.
    """
    for file in files:
        kind = _kind(file)
        assert kind is not None
        yield from READERS[kind](file, columns)


def fingerprint(files: list[Path], root: Path) -> str:
    """sha256 over the files' names, sizes, and first and last mebibyte: cheap, and enough to detect another dataset."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root).as_posix()}\0{size}\0".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(_FINGERPRINT_BYTES))
            if size > _FINGERPRINT_BYTES:
                handle.seek(max(_FINGERPRINT_BYTES, size - _FINGERPRINT_BYTES))
                digest.update(handle.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def _kind(file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz")
    kind = next((suffix for suffix in READERS if name.endswith(suffix)), None)
    return None if file.suffix.lower() == ".gz" and kind in (".parquet", ".arrow") else kind


def _open(file: Path) -> IO[str]:
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rt", encoding="utf-8", newline="")
    return file.open(encoding="utf-8", newline="")


def _text(file: Path, _columns: Columns) -> Iterator[Document]:
    """A whole file is one document."""
    try:
        with _open(file) as handle:
            yield Document(handle.read(), file.name)
    except (UnicodeDecodeError, OSError) as error:
        raise _unreadable(file, error) from None


def _json_lines(file: Path, columns: Columns) -> Iterator[Document]:
    try:
        with _open(file) as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                where = f"{file}:{number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UsageError(f"harvest.dataset: {where} is not valid JSON: {error}") from None
                if not isinstance(row, dict):
                    raise UsageError(f"harvest.dataset: {where} is {type(row).__name__}, expected an object")
                yield columns.document(row, where)
    except UnicodeDecodeError as error:
        raise _unreadable(_first_bad_line(file), error) from None
    except OSError as error:
        raise _unreadable(file, error) from None


def _first_bad_line(file: Path) -> str:
    """FILE:LINE of the first line that is not UTF-8; text is decoded in blocks, so the error itself has no line."""
    with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{file}:{number}"
    return str(file)


def _parquet(file: Path, columns: Columns) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            wanted = columns.select(parquet.schema_arrow.names, file)
            row = 0
            for batch in parquet.iter_batches(batch_size=1024, columns=wanted):
                yield from _rows(batch, columns, file, row)
                row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from None


def _arrow(file: Path, columns: Columns) -> Iterator[Document]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as source:
            try:
                batches = pa.ipc.open_stream(source)  # what `datasets` writes
            except pa.ArrowInvalid:
                opened = pa.ipc.open_file(source)
                batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
            row = 0
            for batch in batches:
                wanted = columns.select(batch.schema.names, file)
                yield from _rows(batch.select(wanted), columns, file, row)
                row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from None


def _rows(batch: Any, columns: Columns, file: Path, first: int) -> Iterator[Document]:
    for offset, row in enumerate(batch.to_pylist()):
        yield columns.document(row, f"{file} row {first + offset}")


def _unreadable(where: Path | str, error: Exception) -> UsageError:
    hint = None
    if isinstance(error, UnicodeDecodeError):
        hint = "text must be UTF-8: iconv -f ENCODING -t UTF-8 FILE converts it"
    return UsageError(f"harvest.dataset: cannot read {where}: {error}", hint)


READERS: dict[str, Reader] = {
    ".txt": _text,
    ".md": _text,
    ".rst": _text,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""Suffix of a file (before an optional .gz, for text and JSON lines) → its reader."""
