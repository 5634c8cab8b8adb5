"""Documents in files: a text file is one document, a tar archive one for each text file in it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from ...shared.errors import UsageError
from ...shared.untrusted import BoundedMember
from .decode import DAMAGE, PART, damaged, decoded_parts, open_binary, text_parts
from .documents import Document
from .reading import BadRowError, refuse_surrogates

Documents = Iterator[Document | BadRowError]

SUFFIXES = (".txt", ".md", ".rst")

MOST_HELD = 8 * PART
"""Characters of a document that is held whole; a longer one is read in parts, each time anew."""


def text_file(file: Path) -> Documents:
    """The file as one document."""
    yield _document(lambda: text_parts(file), text_parts(file), file.name, str(file))


def tar_file(file: Path) -> Documents:
    """The text files of an archive in its order, each a document; hidden ones are left out.

    Raises:
        UsageError: the archive holds no text file.
    """
    found = 0
    others: list[str] = []
    try:
        for index, name, handle in _members(file):
            if Path(name).suffix.lower() not in SUFFIXES:
                others.append(name)
                continue
            found += 1
            where = f"{file}/{name}"
            yield _document(_again(file, index), decoded_parts(handle, where), f"{file.name}/{name}", where)
    except (tarfile.TarError, *DAMAGE) as error:
        yield damaged(str(file), error)
        return
    if not found:
        listed = f", only {others[0]} and the like" if others else ""
        raise UsageError(
            f"harvest.dataset: {file} holds no text file ({', '.join(SUFFIXES)}){listed}",
            hint=f"tar -xf {file} -C FOLDER, then --set harvest.dataset=FOLDER",
        )


def _document(
    again: Callable[[], Iterator[str]], parts: Iterable[str], source: str, where: str
) -> Document | BadRowError:
    """The document, checked to its end; a long one without its text."""
    held: list[str] = []
    chars = 0
    try:
        for part in parts:
            refuse_surrogates(part, "the text", where)
            chars += len(part)
            if chars <= MOST_HELD:
                held.append(part)
    except BadRowError as bad:
        return bad
    return Document("", source, parts=again) if chars > MOST_HELD else Document("".join(held), source)


def _members(file: Path) -> Iterator[tuple[int, str, IO[bytes]]]:
    """Index, name and bytes of each regular member that is not hidden. The bytes last until the next one."""
    with open_binary(file) as raw, _opened(raw) as archive:
        for index, member in enumerate(archive):
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            hidden = any(part.startswith(".") and part != "." for part in Path(member.name).parts)
            if member.issparse() and not hidden:
                raise tarfile.ReadError(f"{member.name} is a sparse file, which may claim any length")
            handle = archive.extractfile(member) if member.isfile() and not hidden else None
            if handle is not None:
                yield index, member.name, handle


def _opened(raw: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=cast(Any, raw), mode="r|", tarinfo=BoundedMember)


def _again(file: Path, wanted: int) -> Callable[[], Iterator[str]]:
    def parts() -> Iterator[str]:
        for index, name, handle in _members(file):
            if index == wanted:
                yield from decoded_parts(handle, f"{file}/{name}")
                return

    return parts
