"""Files of a user or of another program: bounds on what they claim, before anything is computed or allocated from it.

The bounds are far above what real files hold, so nobody sets them. A file beyond one is refused by name.
"""

from __future__ import annotations

import io
import json
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import DataError

EXPANDED_BYTES, EXPANSION = 64 << 20, 100
"""A compressed file may expand to so many bytes and to that multiple of its size. Text shrinks to a tenth at best."""

ROW_CHARS = 16 << 20
"""Characters of a row of a table in text: a line, an element of an array, the fields of a CSV."""

DOCUMENT_BYTES = 256 << 20
"""Bytes of a JSON document."""

TOKEN_IDS = 1 << 24
"""Ids of a tokenizer: the library keeps a place for each up to the largest."""

_TAR_HEADER_BYTES = 64 << 10
"""Bytes of an extended header of a tar archive: a name, or a few attributes."""


def most_expanded(n_bytes: int) -> int:
    """Bytes that a compressed file of so many may expand to."""
    return EXPANDED_BYTES + EXPANSION * n_bytes


def refuse_expansion(file: Path, expanded: int) -> None:
    """Raises DataError where a compressed file expands, or says that it will, beyond the bound."""
    size = file.stat().st_size
    if expanded > most_expanded(size):
        raise DataError(
            f"{file} ({size:,} bytes) expands to more than {most_expanded(size):,} bytes, which no such file does",
            "expand it with its own program, if you know where it comes from, and give what comes out",
        )


class Expanding(io.RawIOBase):
    """What a decompressor reads from a file, as far as the bound.

    Args:
        source: the decompressor, opened.
        file: its file, for the bound and the error.
    """

    def __init__(self, source: Any, file: Path) -> None:
        self._source, self._file, self._given = source, file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(len(buffer))
        except MemoryError:
            raise DataError(
                f"{self._file} requires more memory to be decompressed than there is",
                "compress it again with the usual settings of its program",
            ) from None
        self._given += len(data)
        if self._given > EXPANDED_BYTES:
            refuse_expansion(self._file, self._given)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


def byte_lines(raw: IO[bytes]) -> Iterator[bytes | None]:
    """The lines with their ends; None for one that is longer than a row may be, which is passed over."""
    while line := raw.readline(ROW_CHARS + 1):
        long = len(line) > ROW_CHARS
        while long and line and not line.endswith(b"\n"):
            line = raw.readline(1 << 20)
        yield None if long else line


class BoundedMember(tarfile.TarInfo):
    """A member of a tar archive: `tarfile` reads extended headers whole, so their size is bounded."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> BoundedMember:
        found = super().frombuf(buf, encoding, errors)
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        named = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if found.type in (*extended, *named) and found.size > _TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {found.size:,} bytes, expected at most {_TAR_HEADER_BYTES:,}")
        return found


def check_tokenizer(file: Path) -> None:
    """Raises DataError where a tokenizer.json is no JSON object, or has ids beyond the bound."""
    found = read_object(file)
    model, added = found.get("model"), found.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [one.get("id") for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    for number in ids:
        if type(number) is not int or not 0 <= number < TOKEN_IDS:
            raise DataError(f"{file} has the token id {number!r}, expected whole numbers below {TOKEN_IDS:,}")


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON document. Raises ValueError, whatever is wrong with it."""
    if len(data) > DOCUMENT_BYTES:
        raise ValueError(f"longer than {DOCUMENT_BYTES:,} bytes")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_object(file: Path, hint: str | None = None) -> dict[str, Any]:
    """The object in a JSON file of another program, or in a report.

    Raises:
        DataError: it is missing, no regular file, too long, or holds something else.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{file} is not a regular file", hint)
        if status.st_size > DOCUMENT_BYTES:
            raise ValueError(f"it has {status.st_size:,} bytes, expected at most {DOCUMENT_BYTES:,}")
        found = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{file} cannot be read: {reason}", hint) from None
    if not isinstance(found, dict):
        raise DataError(f"{file} holds {type(found).__name__}, expected an object", hint)
    return found
