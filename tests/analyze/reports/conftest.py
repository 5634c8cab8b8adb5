"""The planted cache and its report, made once for all tests of the reports."""

from __future__ import annotations

import json

import pytest

from sparse_pipeline.analyze.config import AnalyzeConfig, usual_reports
from sparse_pipeline.analyze.reports.correlation.config import CorrelationConfig
from sparse_pipeline.analyze.run import analyze
from tests.analyze.planted import NAMED, World, planted


@pytest.fixture(scope="session", params=["concat", "apart"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Sequences that begin with BOS, and such that have one before every document: each is position 0."""
    folder = tmp_path_factory.mktemp("planted")
    made = planted(folder / "cache", packing=request.param)
    run = made.run(folder / "runs")
    reports = {**usual_reports(), "correlation": CorrelationConfig(latents=NAMED)}
    result = analyze([run.path], AnalyzeConfig(out=folder / "reports", controls=False, reports=reports))
    return World(made, result, json.loads((result.report.parent / "report.json").read_text()))
