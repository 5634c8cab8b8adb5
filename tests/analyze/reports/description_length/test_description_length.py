"""Description length: bits by SciPy's entropy and by SAEBench's formula written out, the FVU by decoding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.description_length.bits import rounded
from sparse_pipeline.analyze.reports.description_length.config import DescriptionLengthConfig
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.codes.sparse import SparseCodes
from tests.analyze.planted import SOURCE, TARGET, planted


def dense_codes(rows: int = 400, latents: int = 9) -> np.ndarray:
    rng = np.random.default_rng(0)
    dense = np.where(
        rng.random((rows, latents)) < np.linspace(0.02, 1, latents), rng.gamma(2.0, 1.0, (rows, latents)), 0
    )
    dense[:, 0] = 0  # dead
    return dense.astype(np.float32)


def saebench(dense: np.ndarray, bins: int) -> float:
    """calculate_dl of sae_bench/evals/mdl/main.py with the bins of its build_bins, in the same steps."""
    total = 0.0
    for column in torch.from_numpy(dense).T:
        p = (column > 0).double().mean()
        fires = 0.0 if p in (0, 1) else float(-p * torch.log2(p) - (1 - p) * torch.log2(1 - p))
        if column.max() > 0:
            counts, _ = torch.histogram(column, bins=torch.linspace(0, float(column.max()), bins + 1))
            shares = (counts / counts.sum()).double()
            shares = shares[(shares > 0) & (shares < 1)]
            total += fires + float(p) * float(-(shares * torch.log2(shares)).sum())
    return total


@pytest.mark.parametrize("bins", [2, 16, 64])
def test_bits_are_those_of_the_symbols_that_are_sent(bins: int) -> None:
    dense = dense_codes()
    found = rounded(SparseCodes.from_dense(dense), bins)
    bits, values = 0.0, np.zeros_like(dense)
    for latent, column in enumerate(dense.T):
        if column.max() > 0:
            edges = np.linspace(0, float(column.max()), bins + 1)
            place = np.clip(np.digitize(column, edges) - 1, 0, bins - 1)
            symbols = np.where(column > 0, place, -1)  # silent, or a bin
            bits += entropy(np.unique(symbols, return_counts=True)[1], base=2)
            values[:, latent] = np.where(column > 0, (edges[place] + edges[place + 1]) / 2, 0)
    assert found.bits == pytest.approx(bits, rel=1e-6)
    assert found.bits_as_saebench == pytest.approx(saebench(dense, bins), rel=1e-4)
    assert found.values == pytest.approx(values[dense > 0], rel=1e-5)


def test_two_equal_values_and_silence_take_what_arithmetic_says() -> None:
    dense = np.array([[0, 1], [0, 1], [0.5, 1], [2, 1]], np.float32)
    found = rounded(SparseCodes.from_dense(dense), 2)
    assert found.bits == pytest.approx(1.5), "½ silent, ¼ in each bin; the other latent always says the same"
    assert found.bits_as_saebench == pytest.approx(1 + 0.5 * entropy([3, 1], base=2))


def test_the_report_finds_the_fewest_bins_that_keep_the_reconstruction(tmp_path: Path) -> None:
    made = planted(tmp_path / "cache", seed=5)
    run = made.run(tmp_path / "runs").path
    settings = DescriptionLengthConfig(rows=3000, bins=(256, 2, 8), tolerance=0.02)
    config = AnalyzeConfig(out=tmp_path / "reports", reports={"description_length": settings})
    result = analyze([run], config)
    document = json.loads((result.report.parent / "report.json").read_text())
    found = document["runs"][0]["reports"]["description_length"]["data"]

    every = np.flatnonzero(made.position > 0)
    rows = every[np.linspace(0, len(every) - 1, 3000, dtype=int)]
    assert found["rows"] == len(rows)
    with torch.inference_mode():
        x, y = made.cache.rows(SOURCE, rows), made.cache.rows(TARGET, rows).double()
        codes = made.coder.encode(x)
        mean = torch.from_numpy(made.cache.stats(TARGET).rest.mean)
        variance = (y - mean).square().sum()
        assert found["fvu"] == pytest.approx(
            float((y - made.coder.decode(codes, x)).square().sum() / variance), rel=1e-5
        )
        dense = codes.dense()
        top = dense.max(dim=0).values
        for one in found["lengths"]:
            width = top / one["bins"]
            middle = (torch.floor(dense / width).clamp(max=one["bins"] - 1) + 0.5) * width
            y_hat = made.coder.decode(codes, x) + (
                torch.where(dense > 0, middle, 0) - dense
            ) @ made.coder.raw_directions(made.coder.w_dec)
            assert one["fvu"] == pytest.approx(float((y - y_hat).square().sum() / variance), rel=1e-4)
    lengths = found["lengths"]
    assert [one["bins"] for one in lengths] == [2, 8, 256]
    assert [one["bits"] for one in lengths] == sorted(one["bits"] for one in lengths)
    near = [one for one in lengths if one["fvu"] <= 1.02 * found["fvu"]]
    (summary,) = result.runs
    assert near
    assert summary["description_length"] == near[0]["bits"]
    assert summary["fvu_rounded"] == near[0]["fvu"]
