"""Rows of tables in files: JSON lines, a JSON array, CSV, Parquet, Arrow. Every reader holds a few rows at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...shared.columnar import BATCH_ROWS, arrow_batches, open_parquet, plain_rows
from ...shared.untrusted import ROW_CHARS, byte_lines, parse_json
from .decode import DAMAGE, PART, damaged, lines, open_binary, refuse_pointer, text_parts, too_long
from .documents import Columns
from .reading import BadRowError

Row = tuple[Mapping[str, Any], str]
"""The row, and where it is."""

Rows = Iterator[Row | BadRowError]

_DELIMITERS = (",", ";", "\t", "|")
_LONGEST_LITERAL = len("-Infinity")


def json_lines(file: Path, _columns: Columns) -> Rows:
    """One object a line; empty lines are none."""
    for number, line in lines(file):
        if isinstance(line, BadRowError):
            yield line
        elif line.strip():
            yield _object(line, f"{file}:{number}")


def json_file(file: Path, columns: Columns) -> Rows:
    """An array of objects, or one object a line."""
    return _json_array(file) if _first_char(file) == "[" else json_lines(file, columns)


def is_json_table(file: Path) -> bool:
    """Whether a .json file begins as an array, or with a line that is an object; else it is a description."""
    if _first_char(file) == "[":
        return True
    first = next((line for _, line in lines(file) if isinstance(line, BadRowError) or line.strip()), "")
    return isinstance(first, BadRowError) or not isinstance(_object(first, ""), BadRowError)


def _first_char(file: Path) -> str:
    """The first character that is not white space; empty if there is none."""
    try:
        return next((part.lstrip()[:1] for part in text_parts(file) if part.strip()), "")
    except BadRowError:  # the reader says what is wrong
        return ""


def csv_file(file: Path, columns: Columns) -> Rows:
    """A table with a header; the delimiter is the first of , ; tab | that gives the columns of the settings."""
    csv.field_size_limit(ROW_CHARS)  # a text may be longer than the library expects
    header = next((line for _, line in lines(file) if isinstance(line, BadRowError) or line.strip()), "")
    if isinstance(header, BadRowError) or not header:
        yield from [header] if header else []
        return
    required = set(columns.required())
    tried = {one: next(csv.reader([header], delimiter=one), []) for one in _DELIMITERS}
    delimiter = next((one for one, names in tried.items() if required <= set(names)), _DELIMITERS[0])
    columns.select(tried[delimiter], file)
    bad: list[BadRowError] = []
    strings = _Strings(file, bad)
    reader = csv.reader(strings, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        first, strings.chars = reader.line_num + 1, 0
        try:
            fields = next(reader, None)
        except BadRowError as long:  # a quote that nothing closes
            yield long
            return
        except csv.Error as error:
            yield BadRowError(f"{file}:{first}", "invalid CSV", f" is not valid CSV: {error}")
            continue
        if bad:  # of the lines of this row
            yield bad[0]
            bad.clear()
        elif fields is None:
            return
        elif fields and names is None:
            names = fields
        elif fields:
            yield _csv_row(names or [], fields, f"{file}:{first}")


def parquet(file: Path, columns: Columns) -> Rows:
    """The rows of a Parquet file, group by group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    refuse_pointer(file)
    try:
        wanted = columns.select(pq.read_schema(file).names, file)
        opened, at_once = open_parquet(file, wanted)
        with opened:
            for batch in opened.iter_batches(batch_size=at_once, columns=wanted):
                yield from _rows(batch, file, row)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        yield damaged(f"{file} row {row}", error)


def arrow(file: Path, columns: Columns) -> Rows:
    """The rows of an Arrow file or stream, batch by batch."""
    import pyarrow as pa

    row = 0
    refuse_pointer(file)
    try:
        for batch in arrow_batches(file):
            wanted = columns.select(batch.schema.names, file)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.select(wanted).slice(start, BATCH_ROWS)
                yield from _rows(part, file, row + start)
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        yield damaged(f"{file} row {row}", error)


def count_rows(file: Path, kind: str) -> int | None:
    """Rows of a table, of JSON lines those that are not empty; None where only a reading can tell."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if kind == ".parquet":
            return int(pq.read_metadata(file).num_rows)
        if kind == ".arrow":
            return sum(int(batch.num_rows) for batch in arrow_batches(file))
        if kind in (".jsonl", ".ndjson"):
            with open_binary(file) as raw:
                return sum(1 for line in byte_lines(raw) if line is None or line.strip())
    except (pa.ArrowException, *DAMAGE):  # the harvest says what is wrong
        return None
    return None


def _object(line: str, where: str) -> Row | BadRowError:
    try:
        row = parse_json(line)
    except ValueError as error:
        return BadRowError(where, "invalid JSON", f" is not valid JSON: {error}")
    return _checked(row, where)


def _checked(row: object, where: str) -> Row | BadRowError:
    if isinstance(row, dict):
        return row, where
    return BadRowError(where, "not an object", f" is {type(row).__name__}, expected an object")


def _json_array(file: Path) -> Rows:
    """The elements of an array, parsed one at a time from a window of the text."""
    decoder = json.JSONDecoder()
    text, at, line = "", 0, 1  # text[at:] is not parsed yet; text[at] is on that line
    opening = "["  # what comes before the next element
    parts = text_parts(file)
    while True:
        try:
            begin, row, end = _element(text, at, opening, decoder)
        except json.JSONDecodeError as error:
            held = len(text) - at
            if held > ROW_CHARS and _may_go_on(error):
                yield too_long(f"{file}:{line}")
                return
            wanted = max(PART, min(held, ROW_CHARS + 1 - held))
            try:
                more = "".join(_upto(parts, wanted)) if _may_go_on(error) else ""
            except BadRowError as bad:
                yield bad
                return
            if not more:
                line += text.count("\n", at, error.pos)
                yield BadRowError(f"{file}:{line}", "invalid JSON", f" is not valid JSON from here on: {error.msg}")
                return
            text, at = text[at:] + more, 0
            continue
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
            reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
            yield BadRowError(f"{file}:{line}", "invalid JSON", f" is not valid JSON from here on: {reason}")
            return
        if begin == end:
            return
        line += text.count("\n", at, begin)
        yield _checked(row, f"{file}:{line}")
        line += text.count("\n", begin, end)
        at, opening = end, ","


def _element(text: str, at: int, opening: str, decoder: json.JSONDecoder) -> tuple[int, Any, int]:
    """Begin, value and end of the next element; an empty range at the end of the array. Raises JSONDecodeError."""
    at = _skip_space(text, at)
    if text[at : at + 1] == "]" and opening == ",":
        return at, None, at
    if text[at : at + 1] != opening:
        raise json.JSONDecodeError(f"expected {opening!r}", text, at)
    at = _skip_space(text, at + 1)
    if text[at : at + 1] == "]" and opening == "[":
        return at, None, at
    row, end = decoder.raw_decode(text, at)
    return at, row, end


def _may_go_on(error: json.JSONDecodeError) -> bool:
    """Whether the text ended within the element, so that more of it may cure the error."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(error.doc) - _LONGEST_LITERAL


def _upto(parts: Iterator[str], chars: int) -> Iterator[str]:
    """The next parts, until they have as many characters."""
    while chars > 0 and (part := next(parts, "")):
        chars -= len(part)
        yield part


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


class _Strings:
    """The lines of a file; one that is not text is noted in `bad` and comes as an empty one.

    Attributes:
        chars: given since the reader set it to 0, at the beginning of a row. Beyond the bound BadRowError is raised.
    """

    def __init__(self, file: Path, bad: list[BadRowError]) -> None:
        self._lines, self._file, self._bad, self.chars = lines(file), file, bad, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        if isinstance(line, BadRowError):
            self._bad.append(line)
            return "\n"
        self.chars += len(line)
        if self.chars > ROW_CHARS:
            raise too_long(f"{self._file}:{number}")
        return line


def _csv_row(names: list[str], fields: list[str], where: str) -> Row | BadRowError:
    if len(fields) == len(names):
        return dict(zip(names, fields, strict=True)), where
    return BadRowError(
        where, "wrong number of fields", f" has {len(fields)} fields, expected {len(names)} as in the header"
    )


def _rows(batch: Any, file: Path, first: int) -> Iterator[Row]:
    for offset, row in enumerate(plain_rows(batch)):
        yield row, f"{file} row {first + offset}"
