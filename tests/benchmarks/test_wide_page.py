"""The benchmark of wide pages at toy size: a page of repeated latents opens, and has as many as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.wide_page import measure, read, widened
from tests.browser import needs_chromium


@pytest.fixture(scope="module")
def report(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sparse_pipeline.analyze.config import AnalyzeConfig, usual_reports
    from sparse_pipeline.analyze.run import analyze

    reports = {"top_activations": usual_reports()["top_activations"]}
    config = AnalyzeConfig(
        out=tmp_path_factory.mktemp("wide"), controls=False, page_latents=1, max_tokens=2048, reports=reports
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        return analyze([workshop / "runs" / "topk"], config).report.parent


def test_latents_are_repeated(report: Path, tmp_path: Path) -> None:
    widened(report, tmp_path / "wide", 3000)
    about = read(tmp_path / "wide" / "data" / "columns-0.js")
    assert about["n"] == 3000
    for k in range(len(about["columns"])):
        assert len(read(tmp_path / "wide" / "data" / f"column-0-{k}.js")) == 3000
    with pytest.raises(SystemExit, match=r"analyze\.page_latents=1"):
        widened(tmp_path, tmp_path / "other", 10)


@needs_chromium
def test_it_opens(report: Path, tmp_path: Path, browser: Any) -> None:
    found = measure(browser, report, tmp_path / "wide", 3000)
    assert set(found) == {"overview", "table of latents", "with all its columns", "one latent", "megabytes"}
    assert "3,000 of 3,000 latents" in browser.execute_script("return document.getElementById('main').textContent")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
