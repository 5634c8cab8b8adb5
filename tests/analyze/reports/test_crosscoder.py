"""The crosscoder report over two models, on planted activations in which each kind of latent occurs once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.crosscoder.config import CrosscoderConfig
from sparse_pipeline.analyze.run import AnalyzeResult, analyze
from sparse_pipeline.shared.cache.beside import open_beside
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError
from sparse_pipeline.shared.runs.folder import create_run
from tests.synthetic import make_cache, token_table

SITE, WIDTH, CTX = "layer_01.resid_post", 6, 16
SHARED, ALSO, SHRUNK, REAL, DECOUPLED, TWIN = range(6)
"""Latents. The base model has the concept of SHRUNK, but its decoder row there is zero. That of DECOUPLED is written by
TWIN in the base model. REAL is in the tuned model alone."""

BASE_ROWS = {SHARED: 1.0, ALSO: 0.7, TWIN: 1.0}
TUNED_ROWS = {SHARED: 1.0, ALSO: 1.0, SHRUNK: 1.0, REAL: 1.0, DECOUPLED: 1.0}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnalyzeResult, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("diff")
    rng, table = np.random.default_rng(0), token_table(64, CTX)
    n = table.tokens.size
    z = np.where(rng.random((n, 5)) < 0.3, rng.exponential(1.0, (n, 5)) + 0.1, 0).astype(np.float32)
    base, tuned = (np.zeros((n, WIDTH), np.float32) for _ in range(2))
    for concept in (SHARED, ALSO, SHRUNK, DECOUPLED):
        base[:, concept] = tuned[:, concept] = z[:, concept]
    tuned[:, REAL] = z[:, REAL]
    base[:, 5] = 0.01 * rng.standard_normal(n)
    tuned[:, 5] = 0.01 * rng.standard_normal(n)
    caches = [
        make_cache(folder / name, 64, CTX, acts={SITE: torch.from_numpy(acts)}, table=table)
        for name, acts in (("base", base), ("tuned", tuned))
    ]
    coder = build_coder(
        TopKConfig(latents=6, k=6, decoder_norm="free", normalise="scalar"), (WIDTH, WIDTH), (WIDTH, WIDTH), tied=True
    )
    with torch.no_grad():
        coder.w_enc.zero_()
        coder.w_dec.zero_()
        for latent in (SHARED, ALSO, SHRUNK, REAL, DECOUPLED):
            coder.w_enc[latent, WIDTH + latent] = 1
        coder.w_enc[TWIN, DECOUPLED] = 1
        for start, rows in ((0, BASE_ROWS), (WIDTH, TUNED_ROWS)):
            for latent, length in rows.items():
                coder.w_dec[latent, start + (DECOUPLED if latent == TWIN else latent)] = length
    run = create_run(folder, "diff", {"seed": 0}, {})
    joint = f"{SITE}+{SITE}@2"
    record = open_beside(caches[0], caches[1:]).record
    run.finish(coder, {"steps": 1, "tokens": 1}, {"source": joint, "target": joint, "cache": record, "training": {}})
    config = AnalyzeConfig(out=folder / "reports", reports={"crosscoder": CrosscoderConfig()}, controls=False)
    result = analyze([run.path], config)
    return result, pq.read_table(result.report.parent / "diff" / "sites.parquet").to_pydict()


def test_classes_by_relative_norm(found: tuple[AnalyzeResult, dict[str, Any]]) -> None:
    _, disk = found
    assert disk["class"] == ["shared", "between", "second", "second", "second", "first"]
    assert disk["relative_norm"] == pytest.approx([0.5, 0.65, 1, 1, 1, 0])
    assert disk[f"norm {SITE} of tuned"] == pytest.approx([1, 1, 1, 1, 1, 0])


def test_latent_scaling_tells_the_artefacts_from_the_real_one(found: tuple[AnalyzeResult, dict[str, Any]]) -> None:
    _, disk = found
    error, reconstruction = disk["nu_error"], disk["nu_reconstruction"]
    assert error[SHRUNK] == pytest.approx(1, rel=1e-4)
    assert reconstruction[SHRUNK] == pytest.approx(0, abs=1e-6)
    assert error[REAL] == pytest.approx(0, abs=1e-6)
    assert reconstruction[REAL] == pytest.approx(0, abs=1e-6)
    for latent in (DECOUPLED, TWIN):
        assert error[latent] == pytest.approx(0, abs=1e-6)
        assert reconstruction[latent] == pytest.approx(1, rel=1e-4)


def test_the_page_names_the_artefact_and_counts(found: tuple[AnalyzeResult, dict[str, Any]]) -> None:
    result, _ = found
    figures = result.figures["diff"]
    counts = {key: figures[key].value for key in figures}
    assert counts["shared_latents"] == 1
    assert (counts["exclusive_first"], counts["exclusive_second"], counts["exclusive_confirmed"]) == (1, 3, 1)
    assert counts["exclusive_dense"] == 4  # each fires on about 30 % of the rows
    document = json.loads((result.report.parent / "report.json").read_text())
    (report,) = (one["reports"]["crosscoder"] for one in document["runs"])
    assert "complete shrinkage" in report["lead"]
    assert "confirms 1 of the 4 exclusive ones" in report["lead"]
    (chart,) = (one for one in report["charts"] if one["key"] == "relative_norm")
    assert sum(chart["series"][0]["y"]) == 6
    (listed,) = (one for one in report["tables"] if one["key"] == "exclusive")
    assert {row[0] for row in listed["rows"]} == {SHRUNK, REAL, DECOUPLED, TWIN}


@pytest.mark.parametrize(
    "wrong",
    [{"exclusive_above": 0.5}, {"shared_within": 0.4}, {"dense_above": 0.0}, {"shrunk_above": 2.0}, {"listed": 0}],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        validate(CrosscoderConfig, wrong, "analyze.reports.crosscoder")
