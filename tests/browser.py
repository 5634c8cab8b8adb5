"""Chromium for the tests of pages: one that may be missing, at any width, light or dark, with axe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver (apt-get install chromium-driver)"
)

SIZES = [(390, "light"), (390, "dark"), (1280, "light"), (1440, "dark"), (1920, "light")]
"""Widths of a phone and three screens, with a theme each; colours do not depend on the width, nor widths on the
colours."""

NARROW_AND_WIDE = [SIZES[1], SIZES[2], SIZES[4]]
"""Fewer, for pages that share their style sheet with a page that is tried at all."""

WIDE = """
const W = document.documentElement.clientWidth, panel = document.getElementById('panel');
return [...document.querySelectorAll('body *')].filter(e => {
  const b = e.getBoundingClientRect();
  if (!b.width || b.right <= W + 1) return false;
  for (let p = e.parentElement; p; p = p.parentElement)
    if (getComputedStyle(p).overflowX !== 'visible' && p.id !== 'panel') return false;
  return true;
}).map(e => `${e.tagName}.${e.className}`).concat(panel && panel.scrollWidth > panel.clientWidth ? ['#panel'] : []);
"""
"""What reaches beyond the right edge of the screen, and does not scroll in a box of its own."""


@contextmanager
def started() -> Iterator[Any]:
    """A browser, with a log of its console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
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
    driver.set_script_timeout(120)  # axe on a machine that does much else
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def sized(browser: Any, width: int, theme: str) -> Iterator[None]:
    """The screen of a device, in a theme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def faults(browser: Any, width: int) -> dict[str, list[str]]:
    """What overflows on the page that is open, and what axe finds: rule → elements; {} for a sound page."""
    from axe_core_python.selenium import Axe

    found = {one["id"]: [node["html"][:120] for node in one["nodes"][:3]] for one in Axe().run(browser)["violations"]}
    wide = browser.execute_script(WIDE)
    if browser.execute_script("return document.documentElement.scrollWidth") > width:
        wide.append("the page scrolls sideways")
    return {**found, "overflow": wide} if wide else found


def faults_of(browser: Any, page: Path, sizes: list[tuple[int, str]] = SIZES) -> dict[str, dict[str, list[str]]]:
    """The faults of a static page at each size and theme; {} for a sound one."""
    out = {}
    for width, theme in sizes:
        with sized(browser, width, theme):
            browser.get(f"file://{page}")
            if found := faults(browser, width):
                out[f"{width} {theme}"] = found
    return out
