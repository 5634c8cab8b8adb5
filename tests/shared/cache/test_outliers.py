"""Massive rows planted in a cache: the same rows, moments and shares as numpy finds by the stated rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import Flag, open_cache
from sparse_pipeline.shared.cache.outliers import FACTOR, SiteOutliers
from sparse_pipeline.shared.overview.describe import describe, describe_text
from tests.sealed import reseal
from tests.synthetic import make_cache, place_and_position, sparse_acts, token_table

SITE, WIDTH, PLANTED = "layer_01.resid_mid", 32, 7


def planted(tmp_path: Path, outlying: bool = True):
    """A cache in which every 97th row is massive in one dimension, which also carries most of the variance; or, without
    an outlying dimension, as long in all of them."""
    table = token_table(64, 16, packing="document")
    acts = sparse_acts(table, {SITE: WIDTH})
    x = acts[SITE].float()
    rng = np.random.default_rng(5)
    if outlying:
        x[:, PLANTED] += torch.from_numpy(rng.standard_normal(len(x)).astype(np.float32)) * 40
    rows = np.arange(33, len(x), 97)
    if outlying:
        x[rows, PLANTED] = 900
    else:
        x[rows] += 250
    x[50] = 0.5 * x[50] + 250  # as large, but in no single dimension
    acts[SITE] = x.bfloat16()
    return make_cache(tmp_path / "cache", table=table, acts=acts), table, acts[SITE].double().numpy()


@pytest.mark.parametrize("outlying", [True, False])
def test_massive_rows_and_their_shares_are_those_of_numpy(tmp_path: Path, outlying: bool) -> None:
    cache, table, x = planted(tmp_path, outlying)
    found = cache.outliers(SITE)
    _, position = place_and_position(table)
    rest = (position > 0) & ((table.flags.reshape(-1) & int(Flag.PADDING)) == 0)
    norm = np.linalg.norm(x, axis=1)
    median = np.median(norm[rest])
    rms = np.sqrt((x[rest] ** 2).mean(0))
    outlying_dims = np.flatnonzero(rms >= 10 * np.median(rms))
    massive = rest & (norm > FACTOR * median)
    assert massive.sum() > 3
    massive &= np.isin(np.abs(x).argmax(1), outlying_dims)
    assert set(found.dimensions) == set(outlying_dims.tolist())
    assert (massive.sum() > 3) == outlying == bool(len(outlying_dims))
    np.testing.assert_array_equal(found.rows, np.flatnonzero(massive))
    assert found.median_norm == pytest.approx(median, rel=1e-6)
    ordinary = x[rest & ~massive]
    np.testing.assert_allclose(found.ordinary.mean, ordinary.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.ordinary.var, ordinary.var(0), rtol=1e-7)
    deviation = (x[rest] - x[rest].mean(0)) ** 2
    assert found.share_of_variance == pytest.approx(deviation[massive[rest]].sum() / deviation.sum(), rel=1e-9)
    shares = deviation.sum(0) / deviation.sum()
    assert found.dimensions_share == pytest.approx(shares[outlying_dims].sum(), rel=1e-9)


def test_what_the_manifest_keeps_says_the_same(tmp_path: Path) -> None:
    cache, _, _ = planted(tmp_path)
    found = cache.outliers(SITE)
    again = SiteOutliers.from_dict(found.to_dict(), cache.stats(SITE).rest)
    np.testing.assert_array_equal(again.rows, found.rows)
    np.testing.assert_array_equal(again.ordinary.sum_sq, found.ordinary.sum_sq)
    assert again.to_dict() == found.to_dict()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_manifest_keeps_them_whatever_the_threads(tmp_path: Path, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cache, _, _ = planted(tmp_path)
    finally:
        torch.set_num_threads(before)
    kept = cache.manifest["massive"][SITE]
    assert kept["n_rows"] > 3
    without = {key: value for key, value in cache.manifest.items() if key != "massive"}
    assert replace(cache, manifest=without).outliers(SITE).to_dict() == kept


def test_inspect_shows_them(tmp_path: Path) -> None:
    cache, _, _ = planted(tmp_path)
    found, document = cache.outliers(SITE), describe(cache.path)
    shown = document["sites"][SITE]["massive_rows"]
    assert shown["count"] == len(found.rows)
    assert shown["share_of_rows"] == pytest.approx(len(found.rows) / found.rest.n)
    assert shown["dimensions"] == [PLANTED]
    text = describe_text(document)
    assert f"{len(found.rows)} massive rows: {shown['share_of_rows']:.2%}" in text
    assert f"1 outlying dimension with {found.dimensions_share:.1%} of the variance: {PLANTED}" in text


def test_a_manifest_without_them_shows_none(tmp_path: Path) -> None:
    cache, _, _ = planted(tmp_path)
    reseal(cache.path / "manifest.json", lambda manifest: manifest.pop("massive"))
    document = describe(cache.path)
    assert document["sites"][SITE]["massive_rows"] is None
    assert "massive row" not in describe_text(document)
    assert open_cache(cache.path).outliers(SITE).to_dict() == cache.outliers(SITE).to_dict()


def test_a_cache_of_padding_and_position_zero_has_none(tmp_path: Path) -> None:
    found = make_cache(tmp_path / "cache", n_seq=8, ctx=1).outliers("layer_01.resid_mid")
    assert len(found.rows) == 0
    assert found.median_norm == found.share_of_variance == 0.0
