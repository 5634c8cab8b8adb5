"""The page in a real browser: it draws, searches, sorts, opens a latent, and nothing of the corpus runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analyze.config import AnalyzeConfig
from analyze.run import analyze
from tests.analyze.planted import BOS_LOCKED, DEAD, ONE_TOKEN, STRUCTURAL, F, planted
from tests.analyze.test_run import HOSTILE, nested

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver (apt-get install chromium-driver)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("page")
    made = planted(folder / "cache")
    pieces = {f"▁word{i}": i for i in range(50)}
    for n, text in enumerate(HOSTILE):
        del pieces[f"▁word{n + 5}"]
        pieces[text] = n + 5
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="▁word0"))
    tokenizer.add_special_tokens(["▁word2"])
    tokenizer.save(str(folder / "cache" / "tokenizer.json"))
    runs = [made.run(folder / "runs").path, nested(made, folder / "runs", "nested <i>")]
    return analyze(runs, AnalyzeConfig(out=folder / "reports")).report


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1300,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


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
    assert "with position 0: 5" in row
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
    box.send_keys("nothing-like-this")
    wait(browser, "return document.querySelector('.filters > .count').textContent.startsWith('0 of')")


def test_a_latent_opens_with_its_text_literally(open_page: Any) -> None:
    browser = open_page(f"latents/0/{ONE_TOKEN}")
    wait(browser, "return !document.getElementById('panel').hidden")
    assert texts(browser, "#panel h2")[0].startswith("Latent 14")
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
