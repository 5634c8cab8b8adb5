"""A static page in the look of the reports: titles, tables with legends, pictures. One file, no script, no network.

Every text is escaped; pictures are embedded. The content security policy allows the one style sheet, by its hash, and
nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cache.files import write_file

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        label: its heading.
        definition: what it means, for the legend below the table; "": the label says it.
        text: left-aligned words rather than numbers.
    """

    label: str
    definition: str = ""
    text: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells, as they are shown.

    Attributes:
        soft: places of rows that are shown pale (controls).
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    soft: frozenset[int] = frozenset()

    @property
    def legend(self) -> list[Column]:
        """The columns that need a word."""
        return [column for column in self.columns if column.definition]


@dataclass(frozen=True)
class Picture:
    """A PNG."""

    png: bytes = field(repr=False)
    alt: str = ""

    @property
    def source(self) -> str:
        """As a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading and what is below it, in the order of the fields.

    Attributes:
        text: paragraphs.
        code: lines for a shell.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    code: str = ""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        about: one line below the title.
        lead: paragraphs ahead of the first section.
    """

    title: str
    about: str
    lead: Sequence[str]
    sections: Sequence[Section]


def page_text(page: Page) -> str:
    """The page as HTML."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    style = (HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    template = environment.from_string((HERE / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(page=page, style=Markup(style), style_hash=f"sha256-{digest}")


def write_page(path: Path, page: Page) -> None:
    """Writes the page, in place of an older one."""
    write_file(path, [page_text(page).encode()])
