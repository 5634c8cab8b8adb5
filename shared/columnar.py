"""Parquet and Arrow files, checked before they are decoded: what a file claims bounds nothing by itself.

Arrow's readers allocate what a page or a buffer says that it expands to, and trust offsets within arrays. So each page
of a Parquet file is looked at first (its header is Thrift's compact protocol), each message of an Arrow file too (a
FlatBuffer), and every batch is validated before its values are read.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import DataError
from .untrusted import refuse_expansion

BATCH_ROWS = 1024
"""Rows that are read at a time, if they are small."""

_BATCH_BYTES = 64 << 20  # of values that are built at a time
_PAGE_BYTES, _PAGE_EXPANSION = 64 << 20, 10  # of a page or buffer: it is expanded whole
_FREE_ROWS = 1 << 20  # rows that a file may have whatever its size; beyond, one a byte
_FREE_VALUES, _VALUES_PER_BYTE = 16 << 20, 8  # values of one column of one row group, where rows are lists
_HEADER_BYTES, _LONGEST_HEADER = 4 << 10, 16 << 20  # of a page's header, with the statistics in it


# Parquet


def open_parquet(file: Path, columns: Collection[str] | None = None) -> tuple[Any, int]:
    """A Parquet file whose pages are within bounds, and how many of its rows to read at a time.

    Args:
        columns: check only these; None: all.

    Raises:
        DataError: it claims more rows, values or bytes than a file of its size holds.
        pyarrow.ArrowException, OSError: it is damaged.
    """
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(file)
    try:
        _check_rows(file, opened.metadata.num_rows)
        largest = _check_pages(file, opened.metadata, columns)
    except BaseException:
        opened.close()
        raise
    return opened, max(1, min(BATCH_ROWS, 4 * _BATCH_BYTES // max(1, largest)))


def read_parquet(file: Path) -> Any:
    """The whole table, as :func:`open_parquet` checks it, and not larger in memory than the bound on files."""
    import pyarrow as pa

    opened, rows = open_parquet(file)
    with opened:
        batches, n_bytes = [], 0
        for batch in opened.iter_batches(batch_size=max(rows, BATCH_ROWS // 8)):
            n_bytes += batch.nbytes
            refuse_expansion(file, n_bytes)
            batches.append(batch)
        return pa.Table.from_batches(batches, opened.schema_arrow)


def _check_rows(file: Path, rows: int) -> None:
    most = _FREE_ROWS + file.stat().st_size
    if not 0 <= rows <= most:
        raise DataError(f"{file} claims {rows:,} rows, expected at most {most:,} in a file of its size")


def _check_pages(file: Path, metadata: Any, columns: Collection[str] | None) -> int:
    """Looks at the header of each page; the bytes of the largest one, expanded."""
    largest = total = 0
    size = file.stat().st_size
    with file.open("rb") as raw:
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            for number in range(row_group.num_columns):
                chunk = row_group.column(number)
                if columns is not None and chunk.path_in_schema.partition(".")[0] not in columns:
                    continue
                values = 0
                for n_bytes, expanded, n_values in _pages(raw, file, chunk, size):
                    values, total, largest = values + n_values, total + expanded, max(largest, expanded)
                    _check_expansion(file, expanded, n_bytes)
                if values > _FREE_VALUES + _VALUES_PER_BYTE * size:
                    raise DataError(f"{file}: column {chunk.path_in_schema} claims {values:,} values in one row group")
                refuse_expansion(file, total)
    return largest


def _check_expansion(file: Path, expanded: int, n_bytes: int) -> None:
    if expanded > _PAGE_BYTES and expanded > _PAGE_EXPANSION * n_bytes:
        raise DataError(
            f"{file}: {n_bytes:,} bytes claim to expand to {expanded:,}, expected at most {_PAGE_BYTES:,}",
            "write the file again, with the usual settings of its program",
        )


def _pages(raw: IO[bytes], file: Path, chunk: Any, size: int) -> Iterator[tuple[int, int, int]]:
    """(bytes, bytes expanded, values) of each page of a column chunk."""
    starts = [at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at]
    at = min(starts, default=0)
    end = at + chunk.total_compressed_size
    if not 4 <= at <= end <= size:
        raise DataError(f"{file} is damaged: a column lies at bytes {at:,} to {end:,} of {size:,}")
    while at < end:
        try:
            header, length = _page_header(raw, at)
            expanded, n_bytes = int(header[2]), int(header[3])
            data = header.get(5) or header.get(8) or {}
            values = int(data.get(1, 0))
        except (LookupError, ValueError, TypeError, AttributeError, struct.error):
            raise DataError(f"{file} is damaged: no page at byte {at:,}") from None
        if n_bytes < 0 or expanded < 0 or values < 0:
            raise DataError(f"{file} is damaged: the page at byte {at:,} has a negative size")
        at += length + n_bytes
        yield n_bytes, expanded, values


def _page_header(raw: IO[bytes], at: int) -> tuple[dict[int, Any], int]:
    """The header of a page, and its length. Raises LookupError, ValueError."""
    for n_bytes in (_HEADER_BYTES, _LONGEST_HEADER):  # statistics in it may be long
        raw.seek(at)
        data = raw.read(n_bytes)
        try:
            return _thrift_struct(data, 0)
        except IndexError:
            if len(data) < n_bytes:
                break
    raise ValueError("a header without an end")


def _thrift_struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Field → number or struct, and where it ends; other values are passed over. Raises LookupError, ValueError."""
    if depth > 8:
        raise ValueError("nested too deep")
    found: dict[int, Any] = {}
    field = 0
    while kind := data[at]:
        at += 1
        if kind >> 4:
            field += kind >> 4
        else:
            field, at = _zigzag(data, at)
        found[field], at = _thrift_value(data, at, kind & 15, depth)
    return found, at + 1


def _thrift_value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind in (3, 7):
        return None, at + (1 if kind == 3 else 8)
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12:
        return _thrift_struct(data, at, depth + 1)
    raise ValueError(f"type {kind} in the header of a page")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift, more = at + 1, shift + 7, data[at] >> 7
        if not more:
            return value, at
        if shift > 63:
            raise ValueError("a number without an end")


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


# Arrow


def arrow_batches(file: Path) -> Iterator[Any]:
    """The record batches of an Arrow stream (what `datasets` writes) or file, mapped, each validated.

    A file is a stream between two marks, so its table of contents is not needed, nor trusted.

    Raises:
        DataError: it claims more rows or bytes than a file of its size holds.
        pyarrow.ArrowException, OSError: it is damaged.
    """
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        start = 8 if source.read(6) == b"ARROW1" else 0
        source.seek(start)
        _check_messages(file, pa.ipc.MessageReader.open_stream(source))
        source.seek(start)
        for batch in pa.ipc.open_stream(source):
            batch.validate(full=True)
            yield batch


def plain_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch as plain values, so many at a time as memory allows: values may share what is stored."""
    at_once = max(1, min(BATCH_ROWS, _BATCH_BYTES // max(1, batch.nbytes)))
    for start in range(0, batch.num_rows, at_once):
        yield from batch.slice(start, at_once).to_pylist()


def _check_messages(file: Path, messages: Any) -> None:
    rows = total = 0
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        if message.type not in ("record batch", "dictionary"):
            continue
        try:
            length, buffers = _record_batch(bytes(message.metadata), message.type == "dictionary")
        except (struct.error, LookupError, ValueError):
            raise DataError(f"{file} is damaged: a message that is no record batch") from None
        rows += length if message.type == "record batch" else 0
        if length < 0:
            raise DataError(f"{file} is damaged: a batch of {length:,} rows")
        _check_rows(file, rows)
        if buffers is None:
            continue
        body = message.body
        for offset, n_bytes in buffers:
            if n_bytes < 8 or offset < 0 or offset + n_bytes > body.size:
                continue  # empty, or damage that the reader finds
            (expanded,) = struct.unpack("<q", body.slice(offset, 8).to_pybytes())
            total += max(0, expanded)
            _check_expansion(file, expanded, n_bytes)
            refuse_expansion(file, total)


def _record_batch(data: bytes, dictionary: bool) -> tuple[int, list[tuple[int, int]] | None]:
    """Rows of a batch, and (offset, bytes) of each of its buffers; None where they are not compressed."""
    header = _table(data, struct.unpack_from("<I", data, 0)[0], 2)
    if header is not None and dictionary:
        header = _table(data, header, 1)
    if header is None:
        raise ValueError("no header")
    length = _field(data, header, 0)
    rows = 0 if length is None else struct.unpack_from("<q", data, length)[0]
    listed = _table(data, header, 2)
    if _field(data, header, 3) is None or listed is None:
        return rows, None
    (count,) = struct.unpack_from("<I", data, listed)
    if count * 16 > len(data):
        raise ValueError("more buffers than the message holds")
    return rows, [struct.unpack_from("<qq", data, listed + 4 + 16 * number) for number in range(count)]


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a field of a FlatBuffer's table lies; None where it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise ValueError("a table outside the message")
    (size,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * number + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
    return table + offset if offset else None


def _table(data: bytes, table: int, number: int) -> int | None:
    """Where the table or vector that a field refers to lies."""
    at = _field(data, table, number)
    return None if at is None else int(at + struct.unpack_from("<I", data, at)[0])
