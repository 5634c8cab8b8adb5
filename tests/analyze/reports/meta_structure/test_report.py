"""Meta-structure: rows made of shared directions against random ones, the variance by least squares."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.meta_structure.config import MetaStructureConfig
from sparse_pipeline.analyze.reports.meta_structure.fit import meta_of, random_rows
from sparse_pipeline.analyze.run import analyze
from tests.analyze.composed import composed_rows
from tests.analyze.planted import D_OUT, F, Planted, planted

QUICK = MetaStructureConfig(steps=80, batch=64, learning_rate=1e-2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The planted coder, with a decoder of composed rows of unequal length."""
    found = planted(tmp_path_factory.mktemp("planted") / "cache", seed=2)
    with torch.no_grad():
        found.coder.w_dec.copy_(composed_rows(F, D_OUT, 12) * torch.linspace(0.5, 2, F)[:, None])
    return found


def test_the_variance_is_what_the_codes_can_explain() -> None:
    rows = composed_rows(96, 32, 16)
    found = meta_of(rows, QUICK, 0)
    assert found.explained is not None
    assert found.codes.n_latents == 24
    assert found.codes.l0.mean() == pytest.approx(QUICK.k, rel=0.25)
    # no decoder of these codes does better than least squares, and a trained one comes close
    y = rows.double().numpy()
    design = np.column_stack([found.codes.csr().toarray(), np.ones(len(y))])
    missed = np.square(y - design @ np.linalg.lstsq(design, y)[0]).sum() / np.square(y - y.mean(axis=0)).sum()
    assert 1 - missed - 0.1 < found.explained <= 1 - missed
    # random rows of the same seed are no other case: the meta-coder does not begin with them
    same, other = (meta_of(random_rows(96, 32, seed), QUICK, 0).explained for seed in (0, 1))
    assert same == pytest.approx(other, abs=0.05)
    assert other is not None
    assert found.explained > other + 0.15


def test_rows_that_do_not_differ_have_no_variance() -> None:
    found = meta_of(torch.ones(10, 4) / 2, QUICK, 0)
    assert found.explained is None
    assert (found.codes.n_rows, found.codes.n_latents, len(found.codes.values)) == (10, 4, 0)


def test_the_command_shows_it_beside_random_directions(made: Planted, tmp_path: Path) -> None:
    run = made.run(tmp_path / "runs").path
    result = analyze([run], AnalyzeConfig(out=tmp_path / "reports", reports={"meta_structure": QUICK}))
    document = json.loads((result.report.parent / "report.json").read_text())
    report = document["runs"][0]["reports"]["meta_structure"]
    figure = report["figures"]["meta_structure"]
    unit = torch.nn.functional.normalize(made.coder.raw_directions(made.coder.w_dec), dim=1).detach()
    assert figure["value"] == pytest.approx(meta_of(unit, QUICK, 0).explained, abs=1e-3), "length does not count"
    assert figure["value"] > figure["null"] + 0.15
    assert result.runs[0]["meta_structure"] == figure["value"]
    (table,) = report["tables"]
    shared = [row[1] for row in table["rows"]]
    assert shared == sorted(shared, reverse=True)
    assert sum(shared) == pytest.approx(report["data"]["per_row"] * F)
    assert [one["name"] for one in document["runs"] if "meta_structure" in one["reports"]] == ["planted"]
    with pytest.raises(ValueError, match="width_ratio is above 0"):
        replace(QUICK, width_ratio=0.0)
