"""A plain table for a terminal: columns two spaces apart, no lines, its headings explained below it.

rich counts the width of wide characters. Where a table is wider than the terminal, its headings break at words, and
then the cells of the columns that may; numbers are never broken.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence

from .folding import NARROWEST, terminal_width
from .glossary import column_meanings

GAP = 2
NARROWEST_COLUMN = 11
"""Cells that a broken column keeps: "  resid_mid"."""


def text_table(
    rows: Sequence[Sequence[str]],
    header: Sequence[str] | None = None,
    left: Collection[int] = (0,),
    *,
    breaks: int | Sequence[int] = (),
    width: int | None = None,
) -> str:
    """Aligned lines of text; "" where there is no row.

    Args:
        rows: cells, all rows of one length.
        left: the columns aligned to the left; the others, numbers, to the right.
        breaks: the columns whose cells break too, in this order, where broken headings do not suffice.
        width: columns of text; None: those of the terminal.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return ""
    cells = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    heads = list(header) if header else [""] * len(cells)
    room = (width or terminal_width()) - GAP * (len(cells) - 1)
    if sum(map(max, cells, map(cell_len, heads))) > room:
        heads = [_broken(head, width) for head, width in zip(heads, cells, strict=True)]
        rows = _fitted(rows, cells, heads, [breaks] if isinstance(breaks, int) else breaks, room)
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


def facts(pairs: Iterable[tuple[str, str]], indent: str = "") -> str:
    """One line for each label, the texts aligned; a console folds them beside their label."""
    kept = [(label, text) for label, text in pairs if text]
    width = max((len(label) for label, _ in kept), default=0)
    return "\n".join(f"{indent}{label:<{width}}  {text}" for label, text in kept)


def explained_table(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    left: Collection[int] = (0,),
    *,
    breaks: int | Sequence[int] = (),
    definitions: Mapping[str, str] | None = None,
    width: int | None = None,
) -> str:
    """A table and below it one line on each heading that is not a plain word.

    Args:
        definitions: heading → what it means, of headings that the glossary does not have.
        width: columns of text; None: those of the terminal.
    """
    parts = [text_table(rows, header, left, breaks=breaks, width=width), legend(header, definitions, width)]
    return "\n".join(part for part in parts if part)


def legend(headings: Sequence[str], definitions: Mapping[str, str] | None = None, width: int | None = None) -> str:
    """One line on each of the headings that the glossary, or else `definitions`, explains; "" without any."""
    meanings = column_meanings(headings, definitions or {})
    widest = max(map(len, meanings), default=0)
    return "\n".join(
        textwrap.fill(
            text,
            max(width or terminal_width(), NARROWEST + widest + 4),
            initial_indent=f"  {heading:<{widest}}  ",
            subsequent_indent=" " * (widest + 4),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for heading, text in meanings.items()
    )


def _broken(text: str, width: int) -> str:
    """Text in lines of at most `width`, or its longest word's."""
    words = text.split()
    return "\n".join(textwrap.wrap(text, max([width, 1, *map(len, words)]), break_on_hyphens=False))


_PARTS = re.compile(r"(?<=\w[-./])(?=[A-Za-z])")
"""Between the parts of a name or a path."""


class _Wrapper(textwrap.TextWrapper):
    """Breaks at spaces, and a name or path that is too wide between its parts."""

    def _split(self, text: str) -> list[str]:
        room = self.width - len(self.subsequent_indent)
        pieces = (_PARTS.split(word) if len(word) > room else [word] for word in re.split(r"(\s+)", text))
        return [part for parts in pieces for part in parts if part]


def _lines(cell: str, width: int) -> str:
    """A cell in lines of at most `width` where its words and their parts allow; its indent stays."""
    indent = cell[: len(cell) - len(cell.lstrip())]
    wrapper = _Wrapper(width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_long_words=False)
    return "\n".join(wrapper.wrap(cell.strip()))


def _fitted(
    rows: Sequence[Sequence[str]], cells: Sequence[int], heads: Sequence[str], breaks: Sequence[int], room: int
) -> list[list[str]]:
    """The rows with the cells of some columns broken to the room that the others leave, one column after the other."""
    from rich.cells import cell_len

    def widest(texts: Iterable[str]) -> int:
        return max(cell_len(line) for text in texts for line in text.split("\n"))

    out = [list(row) for row in rows]
    widths = [max(cell, widest([head])) for cell, head in zip(cells, heads, strict=True)]
    for least, place in ((least, place) for least in (NARROWEST, NARROWEST_COLUMN) for place in breaks):
        if (over := sum(widths) - room) <= 0:
            break
        for row, given in zip(out, rows, strict=True):
            row[place] = _lines(given[place], max(least, widths[place] - over))
        widths[place] = widest([heads[place], *(row[place] for row in out)])
    return out
