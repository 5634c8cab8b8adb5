"""A plain table for a terminal: columns two spaces apart, no lines. rich counts the width of wide characters."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence


def text_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None, left: Collection[int] = (0,)) -> str:
    """Aligned lines of text; "" where there is no row.

    Args:
        rows: cells, all rows of one length.
        left: the columns aligned to the left; the others, numbers, to the right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return ""
    table = Table(box=None, show_header=header is not None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in range(len(rows[0])):
        table.add_column(
            Text(header[column]) if header else "", justify="left" if column in left else "right", no_wrap=True
        )
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=10_000, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
