"""The page in a real browser: it draws, searches, sorts, opens a latent, and nothing of the corpus runs."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.analyze.render.html import write_html
from sparse_pipeline.analyze.result import Chart, Figure, ReportResult, Series, Table, TableColumn, show
from sparse_pipeline.shared.console import Console
from tests.analyze.planted import BOS_LOCKED, CTX, DEAD, ONE_TOKEN, STRUCTURAL, F
from tests.analyze.test_run import HOSTILE
from tests.browser import SIZES, faults, needs_chromium, sized

pytestmark = needs_chromium


NAMES = ["ab-antidup", "ab-jumprelu", "ab-matryoshka-ortsae", "ab-topk", "width-nested-latents=128-seed0"]
REASON = "0 of 22 labels have a dense probe with F1 > 0.6 and 10 true positives: the activations do not say it. " * 2
CHARTS = [
    Chart("pairs", "Pairs", "", NAMES, [Series("pairs", [0, 0, 0, 0, 0])], "run", "pairs"),
    Chart("l0", "L0", "", [15.5, 16.5], [Series("rows", [65000])], "latents that fire on a row", "rows"),
    Chart(
        "tokens", "Tokens", "", [0, 16, 32, 48, 64], [Series("latents", [1, 2, 1, 90])], "effective tokens", "latents",
        marks=[(64, "random rows"), (63, "another null")],
    ),
]  # fmt: skip
TABLE = Table(
    "families",
    "Families",
    "",
    [TableColumn("family", "text"), *(TableColumn(f"figure {n}") for n in range(10)), TableColumn("why not", "remark")],
    [["first_letter", *range(10), REASON], ["digit", *range(10), ""]],
    2,
)
CONTEXTS = Table(
    "contexts",
    "Contexts",
    "",
    [TableColumn("latent", "latent"), TableColumn("context", "text")],
    [[0, "word " * 25]],
    1,
)
ROUNDED = [0.0003125, 0.0009375, 0.00034375, 0.123456, 0.0999500001, 0.5, 1.0]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a document of our own: charts and tables that are hard to lay out."""
    folder = tmp_path_factory.mktemp("drawn")
    figures = [Figure(f"f{n}", f"f{n}", value, "", "percent") for n, value in enumerate(ROUNDED)]
    one = ReportResult("one", "One", "Alone.", figures, CHARTS[:1], [TABLE, CONTEXTS])
    all_of_them = ReportResult("three", "Three", "Three.", (), CHARTS)
    letters = [f"first_letter:{chr(97 + n)}" for n in range(26)]
    chart = Chart("letters", "Letters", "", letters, [Series("full", [0.5] * 26)], "label", "share")
    many = ReportResult("many", "Many", "Many.", (), [chart])
    document = {
        "caches": [],
        "comparison": None,
        "definitions": [],
        "runs": [
            {
                "name": "run",
                "role": "run",
                "trained": False,
                "folder": "run",
                "facts": {"architecture": "topk", "kind": "SAE", "latents": 4, "source": "site"},
                "reports": {"one": one.to_dict(), "three": all_of_them.to_dict(), "many": many.to_dict()},
            }
        ],
    }
    write_html(folder, document, [], Console(quiet=True))
    return folder / "index.html"


@pytest.fixture
def open_page(browser: Any, page: Path) -> Iterator[Any]:
    """Opens the page at a hash; afterwards the console must hold no error and no attack must have run."""

    def opened(where: str) -> Any:
        browser.get("about:blank")
        browser.get(f"file://{page}#{where}")
        wait(browser, "return document.getElementById('main').dataset.drawn")
        return browser

    yield opened
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.execute_script("return window.hacked") is None


@pytest.fixture
def show_drawn(browser: Any, drawn: Path) -> Iterator[Any]:
    """Opens a tab of the page of our own at a width, once its charts are drawn for it."""
    before = browser.get_window_size()

    def opened(where: str, width: int) -> Any:
        browser.set_window_size(width, 900)
        browser.get("about:blank")
        browser.get(f"file://{drawn}#{where}")
        fits = (
            "[...document.querySelectorAll('.chart')].every(c => c.firstChild.viewBox.baseVal.width >= c.clientWidth)"
        )
        wait(browser, f"return document.getElementById('main').dataset.drawn && {fits}")
        return browser

    yield opened
    browser.set_window_size(before["width"], before["height"])
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


BOXES = (
    "return [...document.querySelectorAll(arguments[0])].map(e => { const b = e.getBoundingClientRect();"
    "return [e.textContent, b.left, b.right, b.top, b.bottom]; })"
)


def wait(browser: Any, script: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(script))


def texts(browser: Any, selector: str) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )
    return found


def keys(browser: Any, *pressed: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*pressed).perform()


def test_overview_shows_every_run_with_and_without_position_0(open_page: Any) -> None:
    browser = open_page("overview/0")
    assert texts(browser, ".overview thead a") == [
        "planted",
        "nested <i>",
        "untrained (nested <i>)",
        "untrained (planted)",
    ]
    row = next(r for r in texts(browser, ".overview tbody tr") if r.startswith("pairs with |r| > 0.8"))
    assert "4" in row
    assert "including position 0: 5" in row
    assert "null: 0" in row


@pytest.mark.parametrize("tab", ["global", "correlation", "position", "top_activations", "definitions"])
def test_every_tab_draws(open_page: Any, tab: str) -> None:
    browser = open_page(f"{tab}/0")
    assert texts(browser, "#tabs [aria-selected=true]") != ["Overview"]
    if tab != "definitions":
        charts = browser.execute_script("return document.querySelectorAll('main figure svg').length")
        shapes = browser.execute_script("return document.querySelectorAll('main svg .bar, main svg .line').length")
        assert charts >= 2
        assert shapes >= charts
        assert "NaN" not in browser.execute_script("return document.querySelector('main').innerHTML")


def test_table_of_latents_sorts_and_searches(open_page: Any) -> None:
    browser = open_page("latents/0")
    rows = "return [...document.querySelectorAll('.virtual tr.row')].map(r => Number(r.querySelector('a').textContent))"
    assert set(browser.execute_script(rows)[:2]) < set(STRUCTURAL)  # sorted by the largest r
    assert f"{F} of {F} latents" in texts(browser, ".filters > .count")[0]
    heads = browser.find_elements("css selector", ".virtual th button:not(.why)")
    at_first = next(h for h in heads if h.text.startswith("at pos. 0"))
    at_first.click()
    assert set(browser.execute_script(rows)[:2]) == set(BOS_LOCKED)
    keys(browser, "/")
    keys(browser, "max_r>0.5")
    wait(browser, "return document.querySelector('.filters > .count').textContent.startsWith('5 of')")
    assert set(browser.execute_script(rows)) == {0, 1, 2, 3, 4}
    box = browser.find_element("css selector", ".filters input")
    box.clear()
    box.send_keys(str(ONE_TOKEN))
    wait(browser, "return document.querySelector('.virtual tr.row a').textContent === '14'")
    box.clear()
    box.send_keys('"nothing-like-this"')
    wait(browser, "return document.querySelector('.filters > .count').textContent.startsWith('0 of')")


def test_a_latent_opens_with_its_text_literally(open_page: Any) -> None:
    browser = open_page(f"latents/0/{ONE_TOKEN}")
    wait(browser, "return !document.getElementById('panel').hidden")
    assert texts(browser, "#panel h2")[0].startswith("Latent 14")
    peaks = texts(browser, "#panel .t.peak")
    assert len(peaks) >= 8
    browser.execute_script("document.querySelector('#panel .more').click()")
    peaks = texts(browser, "#panel .t.peak")
    assert len(peaks) >= 20
    assert set(peaks) == {HOSTILE[2]}  # its one token, 7, as it is spelt
    contexts = "".join(texts(browser, "#panel .ctx"))
    assert HOSTILE[0] in contexts
    assert HOSTILE[1] in contexts
    assert browser.execute_script("return document.querySelectorAll('#panel img, #panel script').length") == 0
    assert len(texts(browser, "#panel svg")) == 2
    keys(browser, "j")
    wait(browser, "return !document.querySelector('#panel h2').textContent.startsWith('Latent 14 ')")
    keys(browser, "")
    from selenium.webdriver.common.keys import Keys

    keys(browser, Keys.ESCAPE)
    wait(browser, "return document.getElementById('panel').hidden")


def test_links_between_latents_and_dead_ones(open_page: Any) -> None:
    browser = open_page(f"latents/0/{STRUCTURAL[0]}")
    wait(browser, "return !document.getElementById('panel').hidden")
    assert {str(STRUCTURAL[1]), str(STRUCTURAL[2])} <= set(texts(browser, "#panel .links a"))
    browser.execute_script("document.querySelector('#panel .links a').click()")
    wait(browser, "return document.querySelector('#panel h2').textContent.startsWith('Latent 1 ')")
    browser = open_page(f"latents/0/{DEAD}")
    wait(browser, "return document.getElementById('panel').textContent.includes('never fired')")


def test_a_control_has_no_latents_and_the_keyboard_moves_between_tabs(open_page: Any) -> None:
    browser = open_page("latents/2")
    wait(browser, "return document.getElementById('main').textContent.includes('never trained')")
    keys(browser, "1")
    wait(browser, "return document.getElementById('main').dataset.drawn.startsWith('overview')")
    theme = browser.execute_script("return document.documentElement.dataset.theme")
    keys(browser, "d")
    assert browser.execute_script("return document.documentElement.dataset.theme") != theme
    keys(browser, "?")
    wait(browser, "return document.getElementById('help').open")


def test_a_phone_shows_no_sideways_scroll(open_page: Any, browser: Any) -> None:
    before = browser.get_window_size()
    browser.set_window_size(500, 850)
    try:
        for where in ("overview/0", "correlation/0", "position/0", "latents/0", f"latents/0/{ONE_TOKEN}"):
            open_page(where)
            wide = browser.execute_script(
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wide <= 0, where
    finally:
        browser.set_window_size(before["width"], before["height"])


def test_the_names_of_points_stand_in_the_order_of_the_points(open_page: Any) -> None:
    """Two runs at nearly one place: whichever point is higher has the higher name."""
    browser = open_page("comparison/0")
    names = browser.execute_script(
        "const svg = [...document.querySelectorAll('figure')].find(f => "
        "f.textContent.startsWith('Reconstruction')).querySelector('svg');"
        "const at = (e, a) => Number(e.getAttribute(a));"
        "return [...svg.querySelectorAll('circle')].map(c => [at(c, 'cy'), at(c.nextElementSibling, 'y'), "
        "c.nextElementSibling.textContent])"
    )
    assert {name for _, _, name in names} == {"planted", "nested <i>"}
    assert [name for _, _, name in sorted(names)] == [name for _, _, name in sorted(names, key=lambda n: n[1])]
    assert sorted(names)[-1][2] == "planted"  # the lower FVU lies lower on the page


@pytest.mark.parametrize("width", [1300, 500])
def test_every_bar_is_named_and_a_count_has_whole_ticks(show_drawn: Any, width: int) -> None:
    browser = show_drawn("one/0", width)
    assert texts(browser, "svg .name") == NAMES
    assert texts(browser, "svg .tick-y") == ["0", "1"]
    (_, left, right, *_), *_ = browser.execute_script(BOXES, "figure")
    for name, start, end, *_ in browser.execute_script(BOXES, "svg .name"):
        assert left <= start < end <= right, name


@pytest.mark.parametrize("width", [1300, 500])
def test_many_names_stand_clear_of_each_other(show_drawn: Any, width: int) -> None:
    """Where they do not fit the page, the chart scrolls; the page does not."""
    browser = show_drawn("many/0", width)
    ends = [right for _, _, right, *_ in browser.execute_script(BOXES, "svg .name")]
    assert len(ends) == 26
    steps = [b - a for a, b in pairwise(ends)]
    assert min(steps) * math.sin(math.radians(40)) > 11  # the height of a line
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [1300, 500])
def test_the_text_of_a_chart_is_as_large_as_it_says(show_drawn: Any, width: int) -> None:
    """One chart alone, and three beside each other: drawn for the width they have, and not scaled."""
    for tab in ("one/0", "three/0"):
        browser = show_drawn(tab, width)
        scale = "return [...document.querySelectorAll('.chart svg')].map(s => s.getScreenCTM().a)"
        assert browser.execute_script(scale) == pytest.approx([1.0] * (1 if tab == "one/0" else 3), abs=0.02)
    if width == 1300:
        (_, left, right, *_), *_ = browser.execute_script(BOXES, "figure")
        assert right - left < 700  # a chart alone in its row is no poster


def test_axes_and_marks_keep_clear_of_each_other(show_drawn: Any) -> None:
    browser = show_drawn("three/0", 1300)
    svg = "figure:nth-of-type({}) svg "
    assert texts(browser, svg.format(2) + ".tick-x") == ["14", "15", "16", "17", "18"]
    for chart in (1, 2, 3):
        (_, _, title, *_), *_ = browser.execute_script(BOXES, svg.format(chart) + ".title-y")
        ticks = browser.execute_script(BOXES, svg.format(chart) + ".tick-y")
        assert all(title < left for _, left, *_ in ticks)
    marks = browser.execute_script(BOXES, svg.format(3) + ".mark-name")
    (_, left, right, top, _), *_ = browser.execute_script(BOXES, svg.format(3))
    (_, _, _, line, _), *_ = browser.execute_script(BOXES, svg.format(3) + ".line")
    for name, start, end, above, below in marks:
        assert left <= start < end <= right, name
        assert top - 3 <= above < below <= line, name
    assert marks[0][4] <= marks[1][3] + 3 or marks[1][4] <= marks[0][3] + 3  # one above the other


@pytest.mark.parametrize("width", [1300, 500])
def test_sentences_in_a_table_have_room(show_drawn: Any, width: int) -> None:
    browser = show_drawn("one/0", width)
    boxes = browser.execute_script(BOXES, "tr.below div")
    assert [text for text, *_ in boxes] == [f"why not: {REASON}"]
    assert "why not" not in texts(browser, "thead th")
    assert boxes[0][2] <= width
    for text, _, _, top, bottom in browser.execute_script(BOXES, "main tbody tr"):
        assert bottom - top < (100 if width == 1300 else 220), text


def test_the_page_rounds_as_python_does(show_drawn: Any) -> None:
    browser = show_drawn("one/0", 1300)
    assert texts(browser, ".card .value") == [show(value, "percent") for value in ROUNDED]
    assert show(ROUNDED[0], "percent") == "0.0312%"  # a tie, to the even digit


def test_a_dash_means_not_scored_and_nothing_else(open_page: Any) -> None:
    browser = open_page(f"latents/0/{ONE_TOKEN}")
    wait(browser, "return !document.getElementById('panel').hidden")
    facts = dict(zip(texts(browser, "#panel dt"), texts(browser, "#panel dd"), strict=True))
    assert (facts["cluster?"], facts["position?"]) == ("none", "none")
    assert [text for text in texts(browser, "#panel .panel-head .badge") if text] == []  # a run is no control
    heads = texts(browser, ".virtual thead th")
    place = next(k for k, text in enumerate(heads) if text.startswith("cluster"))
    assert set(texts(browser, f".virtual tr.row td:nth-child({place + 1})")) == {"0", "1", "none"}


def test_columns_that_few_latents_have_come_last(browser: Any, page: Path, tmp_path: Path) -> None:
    """On a phone, empty columns before "fires on" would be all that one sees. Here: density, of one latent only."""

    def block(name: str) -> str:
        return text.partition(f'id="{name}">')[2].partition("<")[0]

    text = page.read_text(encoding="utf-8")
    names = [one["key"] for one in json.loads(zlib.decompress(base64.b64decode(block("columns-0"))))["columns"]]
    old = block(f"column-0-{names.index('density')}")
    values = json.loads(zlib.decompress(base64.b64decode(old)))
    emptied = base64.b64encode(zlib.compress(json.dumps([values[0], *[None] * (len(values) - 1)]).encode())).decode()
    (tmp_path / "index.html").write_text(text.replace(old, emptied), encoding="utf-8")
    browser.get((tmp_path / "index.html").as_uri() + "#latents/0")
    wait(browser, "return document.querySelectorAll('.virtual tr.row').length > 0")
    heads = [head.rstrip(" ?↓") for head in texts(browser, ".virtual thead th")]
    assert heads[0] == "latent"
    assert "fires on" in heads[1:-1]
    assert heads[-1] == "density"


# --- what a reader does all day ---------------------------------------------------------------------------------------

ROWS = "return [...document.querySelectorAll('.virtual tr.row')].map(r => Number(r.querySelector('a').textContent))"


def searched(browser: Any, query: str) -> set[int]:
    """Latents that the table lists for a query typed into its box."""
    box = browser.find_element("css selector", ".filters input")
    box.clear()
    box.send_keys(query)
    wait(browser, f"return new URLSearchParams(location.hash.split('?')[1]).get('q') === {query!r}")
    browser.execute_async_script("setTimeout(arguments[0], 250)")
    return set(browser.execute_script(ROWS))


def test_a_token_is_found_where_it_is_fired_on(open_page: Any) -> None:
    browser = open_page("latents/0")
    assert ONE_TOKEN in searched(browser, "B`C")
    assert "fires on, top examples" in texts(browser, ".virtual tr.row td:nth-child(2)")
    counts = {}
    for query in ("word4", '"word4"', '" word4"'):
        searched(browser, query)
        counts[query] = int(texts(browser, ".filters > .count")[0].split()[0])
    assert 0 < counts['"word4"'] < counts["word4"], "in quotes the whole token, without them any part of one"
    assert counts['" word4"'] == counts['"word4"'], "the space before it belongs to the token"
    assert searched(browser, '"Word4"') == set()
    assert texts(browser, "td.none")[0].startswith("No match. In quotes")


def test_the_query_is_in_the_address(open_page: Any) -> None:
    browser = open_page("latents/0?q=%22word4%22")
    wait(browser, "return document.querySelector('.filters input').value === '\"word4\"'")
    wait(browser, "return document.querySelector('.filters > .count').textContent.split(' of ')[0] !== '0'")
    found = set(browser.execute_script(ROWS))
    assert found == searched(open_page("latents/0"), '"word4"')
    browser.execute_script("document.querySelector('.virtual tr.row a').click()")
    wait(browser, "return !document.getElementById('panel').hidden")


def test_a_panel_begins_with_text_and_ends_with_histograms(open_page: Any) -> None:
    browser = open_page(f"latents/0/{STRUCTURAL[0]}")
    wait(browser, "return !document.getElementById('panel').hidden")
    heads = texts(browser, "#panel h3")
    order = [next(k for k, head in enumerate(heads) if head.startswith(start)) for start in (
        "Top activations", "Fires together with", "Where it fires",
    )]  # fmt: skip
    assert order == sorted(order)
    near = texts(browser, "#panel figure:has(a.latent) td.short")
    assert near
    assert all("word" in text or "<" in text for text in near), "a neighbour is named with its tokens"


def test_shown_activations_are_the_activations(open_page: Any, page: Path) -> None:
    """The heat of a token says the activation itself, to four digits of the latent's largest."""
    import gzip
    import json

    browser = open_page(f"latents/0/{ONE_TOKEN}")
    wait(browser, "return !document.getElementById('panel').hidden")
    with gzip.open(page.parent / "planted" / "latents.jsonl.gz", "rt") as file:
        latent = [json.loads(line) for line in file][ONE_TOKEN]
    items = next(b for b in latent["panels"]["top_activations"] if b["type"] == "examples")["groups"][0]["items"]
    titles = browser.execute_script("return [...document.querySelectorAll('#panel .t.peak')].map(e => e.title)")
    for title, item in zip(titles, items[:8], strict=False):
        assert float(title.rpartition(": ")[2]) == pytest.approx(item["value"], rel=2e-4)


def test_a_wider_context_is_the_whole_sequence(open_page: Any) -> None:
    browser = open_page(f"latents/0/{ONE_TOKEN}")
    wait(browser, "return !document.getElementById('panel').hidden")
    count = "return document.querySelector('#panel .example .ctx').childElementCount"
    before = browser.execute_script(count)
    browser.execute_script("document.querySelector('#panel .wider').click()")
    wait(browser, f"return document.querySelector('#panel .example .ctx').childElementCount > {before}")
    assert browser.execute_script(count) == CTX
    peaks = "return document.querySelector('#panel .example').querySelectorAll('.t.peak').length"
    assert browser.execute_script(peaks) == 1
    browser.execute_script("document.querySelector('#panel .wider').click()")
    wait(browser, f"return document.querySelector('#panel .example .ctx').childElementCount === {before}")


def test_the_matching_latent_of_the_other_run_is_linked(open_page: Any) -> None:
    browser = open_page(f"latents/0/{ONE_TOKEN}")
    wait(browser, "return !document.getElementById('panel').hidden")
    browser.execute_script(
        "[...document.querySelectorAll('#panel figure')].find(f => f.textContent.startsWith('In the other runs'))"
        ".querySelector('a.latent').click()"
    )
    wait(browser, "return document.querySelector('#panel h2 small').textContent.startsWith('nested')")
    assert texts(browser, "#panel .copy") == ["Copy link"]
    assert browser.title.startswith("planted, nested <i> – ")
    assert texts(browser, "#about")[0].startswith("planted, nested <i> · ")


PLACES = ("overview/0", "comparison/0", "top_activations/0", "latents/0", f"latents/0/{STRUCTURAL[0]}")


@pytest.mark.parametrize(("width", "theme"), SIZES)
def test_nothing_overflows_and_axe_finds_no_fault(open_page: Any, browser: Any, width: int, theme: str) -> None:
    with sized(browser, width, theme):
        for place in PLACES:
            open_page(place)
            browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
            if place.count("/") == 2:
                wait(browser, "return !document.getElementById('panel').hidden")
            assert faults(browser, width) == {}, f"{place} at {width}, {theme}"


def test_a_latent_prints_as_one_page_and_no_page_is_cut(open_page: Any, browser: Any) -> None:
    import base64
    import re

    def sheets(place: str) -> int:
        open_page(place)
        wait(browser, "return document.querySelectorAll('#panel .pair svg').length >= 2")
        pdf = base64.b64decode(
            browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})["data"]
        )
        return len(re.findall(rb"/Type\s*/Page\b", pdf))

    assert sheets(f"latents/0/{STRUCTURAL[0]}") == 1
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    paper = {"width": 700, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4 less its margins
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", paper)
    try:
        for place in ("overview/0", "comparison/0", "top_activations/0"):
            open_page(place)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 700, place
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_numbers_of_a_column_share_a_format(show_drawn: Any, open_page: Any) -> None:
    browser = open_page("comparison/0")
    columns = browser.execute_script(
        "const t = [...document.querySelectorAll('details.table')].find(d => d.textContent.startsWith('How alike'));"
        "return [...t.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    for column in zip(*columns, strict=True):
        decimals = {len(text.partition(".")[2]) for text in column if text.replace(".", "").replace("-", "").isdigit()}
        assert len(decimals) <= 1, column
