"""What reports say of position 0 where sequences begin with a BOS, and where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.correlation.config import CorrelationConfig
from sparse_pipeline.analyze.reports.position.config import PositionConfig
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.runs.folder import create_run
from sparse_pipeline.train.normalisation import moments_of
from tests.synthetic import make_cache

SOURCE, TARGET = "layer_01.resid_mid", "layer_01.mlp_out"


@pytest.mark.parametrize("token", [2, None])
def test_reports_name_bos_only_where_there_is_one(token: int | None, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", n_seq=96, config={"resolved": {"bos_token_id": token}})
    coder = build_coder(TopKConfig(latents=24, k=4), 32, 32, tied=False, generator=torch.Generator().manual_seed(0))
    coder.set_normalisation(*(moments_of(cache, site, coder.config.normalise) for site in (SOURCE, TARGET)))
    run = create_run(tmp_path / "runs", "one", {}, {})
    known = {"path": str(cache.path), "identity": cache.identity}
    run.finish(coder, {"steps": 1}, {"source": SOURCE, "target": TARGET, "cache": known, "training": {}})
    reports = {"position": PositionConfig(), "correlation": CorrelationConfig()}
    made = analyze([run.path], AnalyzeConfig(out=tmp_path / "reports", reports=reports, controls=False)).report
    (page,) = made.parent.glob("*.md")
    text = page.read_text()
    assert ("This cache has no BOS: position 0 holds the first token of each sequence" in text) == (token is None)
    assert ("but the constant vector at the start of every sequence" in text) <= (token is not None)
    assert ("but their firing at the start of every sequence" in text) <= (token is None)
