"""The page of many latents, which loads what is known of each from files beside it: the same page as in one file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.render import html
from sparse_pipeline.analyze.run import analyze
from tests.analyze.planted import DEAD, ONE_TOKEN, STRUCTURAL, F
from tests.analyze.render.test_browser import ROWS, searched, texts, wait
from tests.browser import needs_chromium

BLOCK, SEARCH = 5, 24

PANEL = (
    "const panel = document.getElementById('panel').cloneNode(true);"
    "for (const svg of panel.querySelectorAll('svg')) svg.replaceWith('chart'); return panel.innerHTML"
)
"""The markup of a latent's panel; its charts are drawn for the room that they find."""

ASKED = (
    "window.asked = []; const seen = (node) => { if (node.src) window.asked.push(node.getAttribute('src')); };"
    "new MutationObserver(changes => changes.forEach(change => change.addedNodes.forEach(seen)))"
    ".observe(document, {childList: true, subtree: true})"
)
"""Keeps the addresses of the scripts that a page adds to itself."""


@pytest.fixture(scope="module")
def wide(attacked: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same report, with small blocks in files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "PANEL_BLOCK", BLOCK)
        patch.setattr(html, "SEARCH_BLOCK", SEARCH)
        return analyze(attacked, AnalyzeConfig(out=tmp_path_factory.mktemp("wide"), page_latents=F)).report


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[[Path, str], Any]]:
    """Opens a page at a place; afterwards the console must hold no error and no attack must have run."""

    def go(page: Path, where: str) -> Any:
        browser.get("about:blank")
        browser.get(f"file://{page}#{where}")
        wait(browser, "return document.getElementById('main').dataset.drawn")
        return browser

    yield go
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.execute_script("return window.hacked") is None


def test_blocks_are_scripts_of_one_call_and_the_page_holds_none(page: Path, wide: Path) -> None:
    text = wide.read_text(encoding="utf-8")
    assert 'type="text/plain"' not in text
    assert 'type="text/plain"' in page.read_text(encoding="utf-8")
    assert len(text) < 0.7 * page.stat().st_size
    files = {path.stem: path.read_text(encoding="ascii") for path in (wide.parent / "data").iterdir()}
    for name, content in files.items():
        assert re.fullmatch(rf'loaded\("{re.escape(name)}","[A-Za-z0-9+/=]+"\)\n', content), name
    blocks = {f"panels-0-{n}" for n in range(-(-F // BLOCK))} | {f"search-0-{n}" for n in range(-(-F // SEARCH))}
    assert blocks | {"columns-0", "column-0-0", "columns-1", "vocabulary", "text"} <= files.keys()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert "script-src 'sha256-" in policy[1]
    assert "'strict-dynamic'" in policy[1]
    assert "strict-dynamic" not in page.read_text(encoding="utf-8").split("</head>")[0]


@needs_chromium
def test_a_latent_is_the_same_from_a_file(opened: Callable[[Path, str], Any], page: Path, wide: Path) -> None:
    """Panels of latents in several blocks, with hostile tokens, links, partners in the other run, and of a dead one."""
    for latent in (ONE_TOKEN, STRUCTURAL[0], DEAD, F - 1):
        panels = []
        for one in (page, wide):
            browser = opened(one, f"latents/0/{latent}")
            wait(browser, "return !document.getElementById('panel').hidden")
            panels.append(browser.execute_script(PANEL))
        assert f"Latent {latent} " in panels[0]
        assert panels[0] == panels[1], latent


@needs_chromium
def test_only_what_is_opened_is_loaded(browser: Any, opened: Callable[[Path, str], Any], wide: Path) -> None:
    watching = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": ASKED})
    try:
        opened(wide, "overview/0")
        assert browser.execute_script("return window.asked") == []
        opened(wide, f"latents/0/{ONE_TOKEN}")
        wait(browser, "return !document.getElementById('panel').hidden")
        names = browser.execute_script("return window.asked")
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", watching)
    assert [name for name in names if "panels" in name] == [f"data/panels-0-{ONE_TOKEN // BLOCK}.js"]
    assert {"data/columns-0.js", "data/vocabulary.js"} < set(names)
    assert not any("search" in name or "text" in name or "-1-" in name for name in names)


@needs_chromium
def test_the_table_sorts_and_finds_the_same(opened: Callable[[Path, str], Any], page: Path, wide: Path) -> None:
    """By a column that is not shown, by tokens that it fires on, peaks on and promotes, in several blocks."""
    answers = []
    for one in (page, wide):
        browser = opened(one, "latents/0")
        found = [browser.execute_script(ROWS)]
        for query in ("max_r_with_bos>0.5", "word4", '"word4"', "B`C", str(F - 1)):
            searched(browser, query)
            found.append((browser.execute_script(ROWS), texts(browser, ".virtual tr.row td:nth-child(2)")))
        answers.append(found)
    assert answers[0] == answers[1]
    assert len(answers[0][2][0]) > 3
    assert answers[0][1][0] != answers[0][0]


@needs_chromium
def test_a_lost_file_is_named_and_markup_loads_no_script(browser: Any, wide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(wide.parent, folder)
    (folder / "data" / f"panels-0-{ONE_TOKEN // BLOCK}.js").unlink()
    (folder / "data" / "attack.js").write_text("window.hacked = 1")
    index = folder / "index.html"
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace("</main>", '<script src="data/attack.js"></script></main>'), encoding="utf-8")
    browser.get("about:blank")
    browser.get(f"file://{index}#latents/0/{ONE_TOKEN}")
    wait(browser, "return document.getElementById('lacking')")
    assert f"data/panels-0-{ONE_TOKEN // BLOCK}.js was not found" in texts(browser, "#lacking")[0]
    assert texts(browser, ".virtual tr.row")
    assert browser.execute_script("return window.hacked") is None
    refused = [entry["message"] for entry in browser.get_log("browser") if "attack.js" in entry["message"]]
    assert any("Content Security Policy" in message for message in refused)
