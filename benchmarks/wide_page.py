"""How fast a report of very many latents opens in a browser: pages loaded from `file://`, seconds until they are drawn.

    pipeline analyze RUN --set analyze.page_latents=1 --set analyze.name=small
    python -m benchmarks.wide_page reports/small [--latents 1000000] [--out FOLDER]

A copy of the report is made in which the latents of its first run are repeated up to that number, numbers a little
different each time. Few of its blocks of panels are there, since a page loads those that it shows.
Chromium (with its driver and selenium) then opens the overview, the table of latents, and one latent.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

WRITTEN = 16
"""Most blocks of panels that are copied."""

DRAWN = "return Boolean(document.getElementById('main').dataset.drawn)"
ROWS = "return document.querySelectorAll('#main tbody tr').length"
COLUMNS = "return document.querySelectorAll('#main .virtual thead th').length"


def read(file: Path) -> Any:
    """The content of a block."""
    text = re.fullmatch(r'loaded\("[^"]+","([^"]+)"\)\n', file.read_text(encoding="ascii"))
    if text is None:
        raise ValueError(f"{file} is no block of a report")
    return json.loads(zlib.decompress(base64.b64decode(text[1])))


def write(file: Path, value: Any) -> None:
    """A block, as the report has it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    packed = base64.b64encode(zlib.compress(text.encode(), 6)).decode("ascii")
    file.write_text(f'loaded("{file.stem}","{packed}")\n', encoding="ascii")


def widened(report: Path, out: Path, n_latents: int) -> None:
    """A copy of a report with that many latents.

    Args:
        report: a folder with `data/` (analyze.page_latents below its latents).
        out: a folder that does not exist.
    """
    if not (report / "data").is_dir():
        raise SystemExit(f"{report} has no data/ beside its page: analyze again with --set analyze.page_latents=1")
    source, target = report / "data", out / "data"
    target.mkdir(parents=True)
    shutil.copy(report / "index.html", out)
    about = read(source / "columns-0.js")
    times = -(-n_latents // about["n"])
    write(target / "columns-0.js", {**about, "n": n_latents})
    rng = np.random.default_rng(0)
    for k in range(len(about["columns"])):
        values = read(source / f"column-0-{k}.js")
        factors = 1 + rng.random(times)
        repeated = [float(f"{v * f:.4g}") if isinstance(v, float) else v for f in factors.tolist() for v in values]
        write(target / f"column-0-{k}.js", repeated[:n_latents])
    for file in sorted(source.glob("panels-0-*.js"))[:WRITTEN]:
        shutil.copy(file, target)
    search = read(source / "search-0-0.js")
    for b in range(-(-n_latents // about["search_block"])):
        write(target / f"search-0-{b}.js", search)
    for file in [source / "vocabulary.js", *source.glob("text*.js")]:
        shutil.copy(file, target)


def opened(browser: Any, page: Path, where: str, columns: int = 0) -> float:
    """Seconds until a place of the page is drawn: a table with rows, and with that many columns."""
    browser.get("about:blank")
    began = time.perf_counter()
    browser.get(f"{page.absolute().as_uri()}#{where}")
    while not (browser.execute_script(DRAWN) and browser.execute_script(ROWS)) or (
        columns and browser.execute_script(COLUMNS) < columns
    ):
        if time.perf_counter() - began > 120:
            raise TimeoutError(f"{where} was not drawn in two minutes")
        time.sleep(0.01)
    return time.perf_counter() - began


def measure(browser: Any, report: Path, out: Path, n_latents: int) -> dict[str, float]:
    """Seconds by place, and the megabytes of the folder."""
    widened(report, out, n_latents)
    page, shown = out / "index.html", sum(c["shown"] for c in read(out / "data" / "columns-0.js")["columns"])
    return {
        "overview": opened(browser, page, "overview/0"),
        "table of latents": opened(browser, page, "latents/0"),
        "with all its columns": opened(browser, page, "latents/0", shown + 1),
        "one latent": opened(browser, page, "latents/0/7"),
        "megabytes": sum(file.stat().st_size for file in out.rglob("*.*") if file.is_file()) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--latents", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="a new folder for the copy; by default it is removed at the end")
    args = parser.parse_args()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.binary_location = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
    )
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(browser, args.report, args.out or Path(folder) / "wide", args.latents)
    finally:
        browser.quit()
    print(f"{args.latents:,} latents, {found.pop('megabytes'):.0f} MB (without most panels)")
    for name, seconds in found.items():
        print(f"  {name:<21} drawn in {seconds:.2f} s")


if __name__ == "__main__":
    main()
