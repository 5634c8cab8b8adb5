"""The static page: every text escaped, nothing from outside, a legend for columns that need a word."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import re
from pathlib import Path

from sparse_pipeline.shared.page import Column, Page, Picture, Section, Table, page_text, write_page

NASTY = '<script>alert("&")</script>'


class Parsed(html.parser.HTMLParser):
    """The tags of a page in order, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_a_page(tmp_path: Path) -> None:
    columns = [Column("setting", text=True), Column("FVU", f"Unexplained variance {NASTY}.")]
    table = Table(columns, [["a | b", "0.25"], [NASTY, "–"]], frozenset({1}))
    picture = Picture(b"\x89PNG fake", "Curves")
    page = Page(NASTY, "about", ["lead"], [Section("Figures", ("note",), (table,), (picture,), "$ pipeline x")])
    write_page(tmp_path / "index.html", page)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text == page_text(page)
    parsed = Parsed(text)
    assert "script" not in parsed.tags
    assert parsed.texts.count(NASTY) == 3, "the title in the tab, the title, the cell"
    assert parsed.tags.count("tr") == 3
    assert [parsed.texts[i + 1] for i, one in enumerate(parsed.texts) if one == "FVU"][-1].startswith("Unexplained")
    assert f"data:image/png;base64,{base64.b64encode(picture.png).decode()}" in dict(parsed.attributes).values()
    outside = [
        value for name, value in parsed.attributes if name in ("src", "href") and not str(value).startswith("data:")
    ]
    assert outside == []
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}" in text
