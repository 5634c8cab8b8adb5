"""Caches with infinities and NaNs: training and analysis refuse them, or leave those rows out of everything."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.position.config import PositionConfig
from sparse_pipeline.analyze.reports.reconstruction.config import ReconstructionConfig
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.data.stream import open_stream
from sparse_pipeline.train.loop import plan, train
from sparse_pipeline.train.samplers import UniformConfig, build_sampler
from tests.synthetic import make_cache, sparse_acts, token_table

SOURCE, TARGET, OTHER = "layer_01.resid_mid", "layer_01.mlp_out", "layer_02.mlp_out"
BAD = {SOURCE: [100, 1504], TARGET: [777, 100, 16], OTHER: []}  # 16 and 1504 are at position 0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    table = token_table(160, 16)
    acts = sparse_acts(table, dict.fromkeys(BAD, 32))
    for site, rows in BAD.items():
        for number, row in enumerate(rows):
            acts[site][row, number] = (torch.inf, torch.nan, -torch.inf)[number]
    config = {"resolved": {"dtype": "float16"}}
    return make_cache(tmp_path_factory.mktemp("bad") / "cache", acts=acts, table=table, n_seq=160, config=config)


def settings(cache: Cache, runs: Path, policy: str, **changes: object) -> TrainConfig:
    data = DataConfig(batch_size=64, epochs=2, heldout=0.2, nonfinite=policy)  # type: ignore[arg-type]
    base = {"cache": cache.path, "source": SOURCE, "target": TARGET, "runs": runs, "coder": TopKConfig(latents=64, k=4)}
    return TrainConfig(**{**base, "min_steps": 10, "log_every": 10, "data": data, **changes})  # type: ignore[arg-type]


def test_refused_with_the_rows_of_every_site_and_two_cures(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        plan([settings(cache, tmp_path, "refuse")])
    assert f"2 rows of {SOURCE}, 3 rows of {TARGET} hold an infinity or a NaN (of 2,560)" in caught.value.message
    assert "--set harvest.dtype=bfloat16" in str(caught.value.hint)
    assert "--set train.data.nonfinite=skip" in str(caught.value.hint)
    assert not plan([settings(cache, tmp_path, "refuse", source=OTHER, target=None)]).groups[0].notes


def test_skipped_rows_are_in_no_batch_no_evaluation_and_no_figure(cache: Cache, tmp_path: Path) -> None:
    config = settings(cache, tmp_path / "runs", "skip")
    group = plan([config]).groups[0]
    bad = sorted({*BAD[SOURCE], *BAD[TARGET]})
    assert group.to_dict()["nonfinite_rows"] == len(bad)
    with open_stream(group.cache, group.sites, config.data, build_sampler(UniformConfig())) as stream:
        split = stream.split
        seen = np.concatenate([batch.row.numpy() for batch in stream])
    assert not set(bad) & set(seen.tolist())
    assert not (split.train | split.heldout)[bad].any()
    assert (split.train | split.heldout).sum() == 2560 - len(bad)
    assert len(np.unique(seen)) >= split.train.sum() - 64  # all others were drawn
    said = io.StringIO()
    (summary,) = train([config], Console(quiet=True, stream=said))
    assert "4 rows with an infinity or a NaN left out" in said.getvalue()
    assert summary.nonfinite_rows == 4
    assert "4 rows that are not finite left out" in str(summary)
    assert {line["nonfinite_rows"] for line in open_run(config.path).metrics()} == {4}
    assert json.dumps(summary.to_dict(), allow_nan=False)

    # the FVU again, with NumPy, on the held-out rows that are left
    rows = np.flatnonzero(split.heldout & (np.arange(2560) % 16 > 0) & ((cache.flags.reshape(-1) & 1) == 0))
    x, y = (cache.rows(site, rows).float() for site in (SOURCE, TARGET))
    coder = open_run(config.path).load_coder()
    with torch.no_grad():
        y_hat = coder.decode(coder.encode(x), x)
    mean = torch.from_numpy(cache.stats(TARGET).rest.mean)
    expected = float((y - y_hat).double().square().sum() / (y.double() - mean).square().sum())
    assert summary.fvu == pytest.approx(expected, rel=1e-6)

    reports = {"reconstruction": ReconstructionConfig(), "position": PositionConfig()}
    made = AnalyzeConfig(out=tmp_path / "reports", reports=reports, documents="heldout", controls=False)
    with pytest.raises(DataError, match=f"2 rows of {SOURCE}, 3 rows of {TARGET}") as caught:
        analyze([config.path], made)
    assert "--set analyze.nonfinite=skip" in str(caught.value.hint)
    skipping = AnalyzeConfig(**{**made.__dict__, "nonfinite": "skip"})
    (figures,) = analyze([config.path], skipping).figures.values()
    assert figures["fvu"].value == pytest.approx(expected, rel=1e-6)


def test_a_cache_without_a_finite_row_is_refused_either_way(tmp_path: Path) -> None:
    acts = {SOURCE: torch.full((640, 8), torch.nan)}
    cache = make_cache(tmp_path / "cache", acts=acts, n_seq=40)
    with pytest.raises((DataError, UsageError), match="every row holds an infinity or a NaN"):
        plan([settings(cache, tmp_path, "skip", target=None)])
