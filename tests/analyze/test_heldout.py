"""`analyze.documents: heldout`: only the rows of the documents that training held out are looked at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.correlation.config import CorrelationConfig
from sparse_pipeline.analyze.reports.reconstruction.config import ReconstructionConfig
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.models.sequences import choose_sequences
from sparse_pipeline.shared.cache.heldout import split_rows
from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.runs.folder import create_run
from tests.analyze.planted import SOURCE, TARGET, Planted, planted, run_extra

SHARE = 0.3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted(tmp_path_factory.mktemp("heldout") / "cache", seed=5)


def run_of(made: Planted, folder: Path, name: str, share: float | None) -> Path:
    run = create_run(folder, name, {"seed": 0}, {})
    extra = run_extra(made.cache)
    if share is not None:
        extra["training"] = {"seed": 0, "data": {"heldout": share}}
    run.finish(made.coder, {"steps": 1, "tokens": 1}, extra)
    return run.path


def test_figures_are_those_of_the_held_out_rows(made: Planted, tmp_path: Path) -> None:
    cache, mask = made.cache, split_rows(made.cache, SHARE).heldout
    position = np.tile(np.arange(cache.ctx), cache.n_seq)
    rest = np.flatnonzero(mask & (position > 0))
    assert 0 < len(rest) < 0.5 * len(mask)

    x, y = cache.rows(SOURCE, rest), cache.rows(TARGET, rest).double()
    with torch.inference_mode():
        codes = made.coder.encode(x)
        error = (y - made.coder.decode(codes, x).double()).square().sum()
    mean = torch.from_numpy(cache.stats(TARGET).rest.mean)
    dense = codes.dense().double().numpy()
    fired = (dense > 0).sum(0)
    enough = np.flatnonzero(fired >= 50)
    r = np.corrcoef(dense[:, enough].T)
    both = (dense[:, enough] > 0).astype(float).T @ (dense[:, enough] > 0)
    pairs = int((np.triu(np.abs(r) > 0.8, 1) & (both >= 10)).sum())

    config = AnalyzeConfig(
        out=tmp_path,
        documents="heldout",
        controls=False,
        reports={"global": ReconstructionConfig(), "correlation": CorrelationConfig()},
    )
    result = analyze([run_of(made, tmp_path / "runs", "one", SHARE)], config)
    (summary,) = result.runs
    assert result.rows == mask.sum()
    assert summary["fvu"] == pytest.approx(float(error / (y - mean).square().sum()), rel=1e-6)
    assert summary["l0"] == pytest.approx((dense > 0).sum(1).mean(), rel=1e-12)
    assert summary["dead"] == (fired == 0).sum()
    assert pairs > 0
    assert summary["n_pairs_above"] == pairs
    page = result.report.with_name("report.json").read_text(encoding="utf-8")
    figures = json.loads(page)["runs"][0]["reports"]["global"]["figures"]
    assert figures["fvu"]["label"] == "FVU, held-out rows here"
    assert "held-out documents only" in result.report.with_name("report.md").read_text(encoding="utf-8")


def test_runs_must_hold_out_the_same(made: Planted, tmp_path: Path) -> None:
    config = AnalyzeConfig(out=tmp_path, documents="heldout", reports={"global": ReconstructionConfig()})
    all_of_it = run_of(made, tmp_path / "runs", "all", None)
    with pytest.raises(UsageError, match="run all trained on every document, but analyze.documents is heldout"):
        analyze([all_of_it], config)
    two = [run_of(made, tmp_path / "runs", f"run{share}", share) for share in (0.2, 0.3)]
    with pytest.raises(UsageError, match=r"hold out different documents: run0.2 0.2, run0.3 0.3"):
        analyze(two, config)


def test_a_share_that_holds_no_document_out_is_named(made: Planted, tmp_path: Path) -> None:
    share = 1e-9
    assert not split_rows(made.cache, share).heldout.any()
    run = run_of(made, tmp_path / "runs", "one", share)
    with pytest.raises(UsageError, match="no document of .* is held out at data.heldout 1e-09") as raised:
        analyze([run], AnalyzeConfig(out=tmp_path / "reports", documents="heldout"))
    assert raised.value.hint == "--set analyze.documents=all"
    assert not (tmp_path / "reports").exists()


def test_sequences_with_held_out_rows(made: Planted) -> None:
    only = split_rows(made.cache, SHARE).heldout
    chosen = choose_sequences(made.cache, tuple(made.cache.shards), 10**6, only)
    want = [s for s in range(made.cache.n_seq) if only[s * made.cache.ctx : (s + 1) * made.cache.ctx].any()]
    assert chosen.tolist() == want
    assert len(want) < made.cache.n_seq
