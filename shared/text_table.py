"""A plain table for a terminal: columns two spaces apart, no lines, its headings explained below it.

rich counts the width of wide characters. Where a table is wider than the terminal, its headings break at words, and
then one column if asked; numbers and paths are never broken.
"""

from __future__ import annotations

import io
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence

from .glossary import column_meanings

GAP = 2
NARROWEST = 20
"""Cells that a broken column keeps."""


def terminal_width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def text_table(
    rows: Sequence[Sequence[str]],
    header: Sequence[str] | None = None,
    left: Collection[int] = (0,),
    *,
    breaks: int | None = None,
) -> str:
    """Aligned lines of text; "" where there is no row.

    Args:
        rows: cells, all rows of one length.
        left: the columns aligned to the left; the others, numbers, to the right.
        breaks: the column whose cells break too, where broken headings do not suffice.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return ""
    cells = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    heads = list(header) if header else [""] * len(cells)
    room = terminal_width() - GAP * (len(cells) - 1)
    if sum(map(max, cells, map(cell_len, heads))) > room:
        heads = [_broken(head, width) for head, width in zip(heads, cells, strict=True)]
        rows = _fitted(rows, cells, heads, breaks, room) if breaks is not None else rows
    deepest = max(head.count("\n") for head in heads)
    heads = ["\n" * (deepest - head.count("\n")) + head for head in heads]
    table = Table(box=None, show_header=header is not None, pad_edge=False, padding=(0, GAP, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if place in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=10_000, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def explained_table(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    left: Collection[int] = (0,),
    *,
    breaks: int | None = None,
    definitions: Mapping[str, str] | None = None,
) -> str:
    """A table and below it one line on each heading that is not a plain word.

    Args:
        definitions: heading → what it means, of headings that the glossary does not have.
    """
    parts = [text_table(rows, header, left, breaks=breaks), legend(header, definitions)]
    return "\n".join(part for part in parts if part)


def legend(headings: Sequence[str], definitions: Mapping[str, str] | None = None) -> str:
    """One line on each of the headings that the glossary, or else `definitions`, explains; "" without any."""
    meanings = column_meanings(headings, definitions or {})
    width = max(map(len, meanings), default=0)
    return "\n".join(
        textwrap.fill(
            text,
            max(terminal_width(), NARROWEST + width + 4),
            initial_indent=f"  {heading:<{width}}  ",
            subsequent_indent=" " * (width + 4),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for heading, text in meanings.items()
    )


def _broken(text: str, width: int) -> str:
    """Text in lines of at most `width`, or its longest word's."""
    words = text.split()
    return "\n".join(textwrap.wrap(text, max([width, 1, *map(len, words)]), break_on_hyphens=False))


def _lines(cell: str, width: int) -> str:
    """A cell in lines of at most `width` where its words and what hyphens join allow; its indent stays."""
    indent = cell[: len(cell) - len(cell.lstrip())]
    wrapped = textwrap.wrap(
        cell.strip(), width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_long_words=False
    )
    return "\n".join(wrapped)


def _fitted(
    rows: Sequence[Sequence[str]], cells: Sequence[int], heads: Sequence[str], breaks: int, room: int
) -> list[list[str]]:
    """The rows with the cells of one column broken to the room that the others leave."""
    from rich.cells import cell_len

    widths = [
        max(cell, *(cell_len(line) for line in head.split("\n"))) for cell, head in zip(cells, heads, strict=True)
    ]
    left = max(NARROWEST, room - sum(width for place, width in enumerate(widths) if place != breaks))
    return [[_lines(cell, left) if place == breaks else cell for place, cell in enumerate(row)] for row in rows]
