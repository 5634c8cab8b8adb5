"""Opening files of text: the suffix tells the compression, a byte order mark the encoding; UTF-8 without one."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, cast

from ...shared.errors import UsageError
from ...shared.untrusted import ROW_CHARS, Expanding, byte_lines
from .reading import BadRowError

Line = tuple[int, str | BadRowError]

PART = 1 << 20
"""About the length of a part of a long text, in characters."""

_BUFFER = 1 << 16  # bytes of a read; where a compressed file is damaged, up to that many before it are lost

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LFS = b"version https://git-lfs.github.com/spec/"
_CONVERT = "convert the file to UTF-8 (iconv -f ENCODING -t UTF-8 FILE)"

DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)
"""What decompressing a truncated or corrupt file raises."""


def _zstd(file: Path) -> Any:
    import pyarrow as pa

    return pa.input_stream(str(file), compression="zstd")


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
"""Suffix → how to open a file that is compressed so."""


def open_binary(file: Path) -> IO[bytes]:
    """The bytes of a file, decompressed as far as the bound on what a file may expand to.

    Raises:
        UsageError: the file cannot be opened, or is the pointer that Git LFS leaves in place of a file.
    """
    refuse_pointer(file)
    suffix = file.suffix.lower()
    opener = gzip.open if suffix == ".tgz" else COMPRESSIONS.get(suffix)
    try:
        return io.BufferedReader(io.FileIO(file) if opener is None else Expanding(opener(file), file), _BUFFER)
    except OSError as error:
        raise UsageError(f"harvest.dataset: cannot read {file}: {error}") from None


def refuse_pointer(file: Path) -> None:
    """Raises UsageError for a file that cannot be opened, or that Git LFS has not downloaded."""
    try:
        with file.open("rb") as plain:
            found = plain.read(len(_LFS))
    except OSError as error:
        raise UsageError(f"harvest.dataset: cannot read {file}: {error}") from None
    if found == _LFS:
        raise UsageError(
            f"harvest.dataset: {file} is a Git LFS pointer, not the file itself", hint=f"git -C {file.parent} lfs pull"
        )


def damaged(where: str, error: Exception) -> BadRowError:
    """The bad row that stands for the rest of a truncated or corrupt file. Raises UsageError if the disk failed."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        raise UsageError(f"harvest.dataset: cannot read {where}: {text}") from None
    return BadRowError(
        where,
        "truncated or corrupt file",
        f": the file is truncated or corrupt from here on: {text}",
        cure="download or write the file again",
    )


def lines(file: Path) -> Iterator[Line]:
    """The numbered lines of a file, with their line ends; one that is not text in the file's encoding, or longer than a
    row may be, is a bad row.

    What follows damage in a compressed file is one bad row at the end.
    """
    number = 0
    with open_binary(file) as raw:
        try:
            encoding = _encoding(raw, file)
            with closing(_decoded_lines(raw, encoding, file)) as decoded:
                for number, line in enumerate(decoded, 1):
                    yield number, line
        except BadRowError as bad:
            yield 1, bad
        except UnicodeDecodeError as error:
            yield number + 1, _not_text(f"{file}:{number + 1}", error)
        except DAMAGE as error:
            yield number + 1, damaged(f"{file}:{number + 1}", error)


def text_parts(file: Path) -> Iterator[str]:
    """The whole text of a file in parts of about a mebibyte; every kind of line end becomes a newline.

    Raises:
        BadRowError: the file is not text in its encoding, or it is damaged.
    """
    with open_binary(file) as raw:
        yield from decoded_parts(raw, file)


def decoded_parts(raw: IO[bytes], file: Path | str) -> Iterator[str]:
    """As :func:`text_parts`, of an open file."""
    line = 1
    try:
        encoding = _encoding(raw, file)
        inner = codecs.getincrementaldecoder(encoding)(_errors(encoding))
        decoder = io.IncrementalNewlineDecoder(inner, translate=True)
        ended = False
        while not ended:
            data = raw.read(PART)
            ended = not data
            part = decoder.decode(data, final=ended)
            line += part.count("\n")
            if part:
                yield part
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise _not_text(f"{file}:{line}", error) from None
    except DAMAGE as error:
        raise damaged(f"{file}:{line}", error) from None


def _encoding(raw: IO[bytes], file: Path | str) -> str:
    """The encoding by the byte order mark. Raises BadRowError for a file that is not text."""
    start = cast(io.BufferedReader, raw).peek(4096)[:4096]
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    if start.count(0) > len(start) // 8:
        raise BadRowError(
            f"{file}:1",
            "not text",
            " is not text: many of its first bytes are zero; UTF-16 needs a byte order mark",
            cure=_CONVERT.replace("ENCODING", "UTF-16LE"),
        )
    return "utf-8"


def _errors(encoding: str) -> str:
    """UTF-16 can spell a lone surrogate; such a row is found later, alone."""
    return "strict" if encoding.startswith("utf-8") else "surrogatepass"


def _decoded_lines(raw: IO[bytes], encoding: str, file: Path) -> Generator[str | BadRowError]:
    if not encoding.startswith("utf-8"):
        text = io.TextIOWrapper(raw, encoding, errors=_errors(encoding), newline="")
        try:
            number = 0
            while decoded := text.readline(ROW_CHARS + 1):  # `yield from` would close the file when the reader stops
                number += 1
                long = len(decoded) > ROW_CHARS
                while long and decoded and not decoded.endswith(("\n", "\r")):
                    decoded = text.readline(PART)
                yield too_long(f"{file}:{number}") if long else decoded
        finally:
            text.detach()
        return
    # decoded line by line, so that a bad byte costs one line
    for number, line in enumerate(byte_lines(raw), 1):
        if line is None:
            yield too_long(f"{file}:{number}")
            continue
        try:
            yield line.decode(encoding if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield _not_text(f"{file}:{number}", error)


def too_long(where: str) -> BadRowError:
    """The bad row that stands for one beyond the bound."""
    return BadRowError(
        where,
        f"longer than {ROW_CHARS:,} characters",
        f" is longer than {ROW_CHARS:,} characters, the most that a row may have",
        cure="split its document into rows, or put it into a .txt file of its own, which may have any length",
    )


def _not_text(where: str, error: UnicodeDecodeError) -> BadRowError:
    return BadRowError(where, f"not {error.encoding}", f" is not text: {error}", cure=_CONVERT)
