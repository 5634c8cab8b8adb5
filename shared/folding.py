"""Lines of text that fit a terminal: what is wider breaks at its words."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from typing import TextIO

NARROWEST = 20
"""Columns that a broken line keeps beside its indent."""

_LABEL = re.compile(r" *(?:\S+ )*?\S+ {2,}(?=\S)")
"""What stands before a text, two spaces apart from it: a label, or a row's first cells."""

_COMMAND = re.compile(r"^ *(?:next: pipeline |load: )|; next: ")
"""What follows is to be pasted, so a line break in it would be a fault."""


def terminal_width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream goes to, or what COLUMNS says; None: lines may have any length."""
    if (given := os.environ.get("COLUMNS", "")).isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (AttributeError, ValueError, OSError):  # no file, or no terminal behind it
        return None


def folded(text: str, width: int | None) -> str:
    """Text with every line of at most `width` characters, or its longest word's: paths stay whole.

    What does not fit goes below the text that it continues: below what stands beside a label, or indented by two more.
    A command to paste (after "next:" or "load:") is left to the terminal, which breaks it without a newline.
    """
    if width is None:
        return text
    return "\n".join(line if len(line) <= width else _folded(line, width) for line in text.split("\n"))


def _folded(line: str, width: int) -> str:
    command = _COMMAND.search(line)
    if command is not None:
        return line
    label = _LABEL.match(line)
    hang = label.end() if label is not None else len(line) - len(line.lstrip()) + 2
    if hang > width - NARROWEST:
        hang = 2
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
        tabsize=1,
    )
