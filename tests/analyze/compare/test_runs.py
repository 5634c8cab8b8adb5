"""Runs compared as a whole: their codes on the same rows, groups of seeds, likeness of every pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sparse_pipeline.analyze.compare.likeness import BATCH
from sparse_pipeline.analyze.compare.sample import SampledCodes
from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.reconstruction.config import ReconstructionConfig
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.analyze.stream.batches import stream
from sparse_pipeline.analyze.subjects import subjects_of
from sparse_pipeline.shared.runs.folder import open_run
from tests.analyze.planted import CTX, N_SEQ, Planted, planted
from tests.analyze.test_run import nested


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted(tmp_path_factory.mktemp("compare") / "cache")


def test_samples_are_the_codes_of_their_rows(made: Planted, tmp_path: Path) -> None:
    subject = subjects_of(made.cache.path, [("r", open_run(made.run(tmp_path).path))], AnalyzeConfig(controls=False))[0]
    whole, a, b = (SampledCodes(subject, 700) for _ in range(3))
    for k, (batch,) in enumerate(stream(subject.cache, [subject.coder_sites(False)], subject.shards)):
        whole.update(batch)
        (a if k % 2 else b).update(batch)
    a.merge(b)
    np.testing.assert_array_equal(whole.codes.toarray(), made.z[whole.wanted])
    np.testing.assert_array_equal(a.codes[10:40].toarray(), made.z[whole.wanted[10:40]])
    assert (whole.wanted % CTX != 0).all()
    assert len(SampledCodes(subject, 10**9).wanted) == N_SEQ * (CTX - 1)


def test_three_seeds_before_and_after(made: Planted, tmp_path: Path) -> None:
    """Groups by setting, Student's intervals over their seeds, likeness of every pair, untrained controls."""
    runs = [made.run(tmp_path / "runs", "planted").path]
    runs += [nested(made, tmp_path / "runs", f"nested-seed{s}", seed=s) for s in range(3)]
    result = analyze(runs, AnalyzeConfig(out=tmp_path / "reports", reports={"global": ReconstructionConfig()}))
    found = result.comparison
    assert found is not None
    assert found["groups"] == {"planted": ["planted"], "nested": ["nested-seed0", "nested-seed1", "nested-seed2"]}
    values = [run["fvu"] for run in result.runs[1:]]
    interval = found["before_after"]["fvu"]["nested"]
    assert interval["values"] == pytest.approx(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (interval["low"], interval["high"]) == (pytest.approx(low), pytest.approx(high))
    assert found["before_after"]["fvu"]["planted"]["low"] is None
    relations = [pair["relation"] for pair in found["pairs"]]
    assert relations.count("seeds of one setting") == 3
    assert (relations.count("setting, same seed"), relations.count("setting and seed")) == (1, 2)
    assert relations.count("against untrained") == 16
    for pair in found["pairs"]:
        if pair["relation"] == "against untrained":
            assert "mmcs" not in pair  # a transcoder's decoder begins at 0, and has no direction yet
        else:
            assert 0 <= pair["shared_share"] <= 1
        assert pair["cka"] <= 1.001
        assert pair["cca_null"] <= pair["svcca"] + 0.05
        assert BATCH <= pair["rows"] == N_SEQ * (CTX - 1)
    # A coder's own start is more like it than that of another seed.
    own = {(p["a"], p["b"]): p["cka"] for p in found["pairs"]}
    assert own["nested-seed0", "untrained (nested-seed0)"] > own["nested-seed0", "untrained (nested-seed1)"] + 0.02
    markdown = (result.report.parent / "report.md").read_text()
    assert "Before and after" in markdown


def test_one_run_has_nothing_to_compare(made: Planted, tmp_path: Path) -> None:
    result = analyze(
        [made.run(tmp_path / "runs").path],
        AnalyzeConfig(out=tmp_path / "reports", reports={"global": ReconstructionConfig()}),
    )
    assert result.comparison is None
