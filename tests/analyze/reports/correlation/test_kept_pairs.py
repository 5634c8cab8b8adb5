"""Pairs counted from kept codes, in parts, merged, sent on: the numbers of the triangle and of dense algebra."""

from __future__ import annotations

import gc
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.correlation.config import CorrelationConfig
from sparse_pipeline.analyze.reports.correlation.kept_pairs import KeptPairs, pairs_for
from sparse_pipeline.analyze.reports.correlation.pair_sums import MAX_ROWS, PairSums
from sparse_pipeline.analyze.reports.correlation.rows_apart import RowsApart
from sparse_pipeline.analyze.reports.correlation.scan import BINS, Scan, scan
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.codes.met_pairs import Asked, unmet_histogram
from sparse_pipeline.shared.codes.moments import CodeMoments
from sparse_pipeline.shared.codes.sparse import SparseCodes
from tests.analyze.planted import NAMED, World

F = 700
ASKED = Asked(threshold=0.5, min_fired=5, min_both=3, listed=1_000_000)


def dense(rows: int, seed: int, rate: float = 0.02) -> np.ndarray:
    """Codes with copies, so that some pairs correlate, and some that never fire or always do."""
    rng = np.random.default_rng(seed)
    z = np.where(rng.random((rows, F)) < rate, rng.exponential(1.0, (rows, F)) + 0.1, 0).astype(np.float32)
    z[:, 650:] = z[:, 600:650] * (1 + 0.05 * rng.standard_normal((rows, 50)).astype(np.float32)).clip(0.5)
    z[:, 3] = z[:, 699]  # r = 1: equal r, so that the order among equals shows
    z[:, 4], z[:, 5] = 0, 1.0
    return z


def codes(z: np.ndarray) -> SparseCodes:
    return SparseCodes.from_dense(z)


def kept_of(folder: Path, *parts: np.ndarray, part_entries: int = 1000) -> KeptPairs:
    kept = KeptPairs(F, folder, part_entries=part_entries)
    for z in parts:
        kept.add(codes(z))
    return kept


@pytest.fixture(scope="module")
def rest() -> np.ndarray:
    return dense(600, seed=0)


def test_look_up_is_exact(rest: np.ndarray, tmp_path: Path) -> None:
    kept = kept_of(tmp_path, *np.array_split(rest, 7))
    i, j = np.random.default_rng(1).integers(0, F, (2, 3000))
    i, j = i[i != j], j[i != j]
    sums, counts = kept.lookup(i, j)
    x = sp.csc_array(rest.astype(np.float64))
    np.testing.assert_allclose(sums, np.asarray(x[:, i].multiply(x[:, j]).sum(axis=0)).reshape(-1), rtol=1e-12)
    np.testing.assert_array_equal(counts, ((rest[:, i] > 0) & (rest[:, j] > 0)).sum(axis=0))
    assert [len(found) for found in kept.lookup(i[:0], j[:0])] == [0, 0]


def views_of(rest: np.ndarray, first: np.ndarray, massive: np.ndarray) -> list[CodeMoments]:
    a, b, c = (codes(z).moments for z in (rest, first, massive))
    return [a, a + b, a - c]


def triangles(rest: np.ndarray, first: np.ndarray, massive: np.ndarray) -> list[Scan]:
    pairs, at_first, in_massive = PairSums(F), RowsApart(F), RowsApart(F)
    pairs.add(codes(rest))
    at_first.add(codes(first))
    in_massive.add(codes(massive))
    blocks = [pairs.blocks(), at_first.added_to(pairs), in_massive.taken_from(pairs)]
    return [
        scan(
            one,
            moments,
            threshold=ASKED.threshold,
            min_fired=ASKED.min_fired,
            min_both=ASKED.min_both,
            max_pairs=ASKED.listed,
            neighbours=20 if n == 0 else 1,
        )
        for n, (one, moments) in enumerate(zip(blocks, views_of(rest, first, massive), strict=True))
    ]


@pytest.mark.parametrize("n_threads", ["1", "2"])
def test_a_scan_finds_what_the_triangle_does(
    rest: np.ndarray, tmp_path: Path, n_threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all three sets of rows, of codes in parts, and merged with those that another process sent."""
    monkeypatch.setenv("OMP_NUM_THREADS", n_threads)
    first, massive = np.repeat(dense(3, seed=2, rate=0.1), 5, axis=0), rest[40:44]
    want = triangles(rest, first, massive)
    kept, other = kept_of(tmp_path, *np.array_split(rest[:200], 3)), kept_of(tmp_path, rest[200:])
    sent = pickle.loads(pickle.dumps(other))
    del other
    kept.merge(sent)
    at_first, in_massive = RowsApart(F), RowsApart(F)
    at_first.add(codes(first))
    in_massive.add(codes(massive))
    found = kept.scan(views_of(rest, first, massive), at_first, in_massive, ASKED, 20)
    assert want[0].n_above > 50
    for mine, theirs in zip(found, want, strict=True):
        assert mine.n_above == theirs.n_above
        np.testing.assert_array_equal(mine.pairs, theirs.pairs)
        np.testing.assert_allclose(mine.r, theirs.r, rtol=1e-12)
        np.testing.assert_array_equal(mine.histogram, theirs.histogram)
        np.testing.assert_allclose(mine.nearest_r, theirs.nearest_r, rtol=1e-6)
    np.testing.assert_allclose(found[0].near_r, want[0].near_r, rtol=1e-6)
    np.testing.assert_array_equal(found[0].near, want[0].near)
    np.testing.assert_array_equal(found[0].near_both, want[0].near_both)
    # and NumPy's, of every scored pair that has met
    scored = (rest > 0).sum(axis=0) >= ASKED.min_fired
    with np.errstate(invalid="ignore"):
        r = np.corrcoef(rest.T.astype(np.float64))
    met = (rest > 0).astype(float).T @ (rest > 0)
    above = np.triu((np.abs(r) > ASKED.threshold) & (met >= ASKED.min_both) & scored & scored[:, None], 1)
    np.testing.assert_array_equal(np.argwhere(above), found[0].pairs)
    np.testing.assert_allclose(found[0].r, r[above], atol=1e-10)
    # the files of both are gone with them
    del kept, sent
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_limited_list_holds_the_first_pairs(rest: np.ndarray, tmp_path: Path) -> None:
    moments, none = [codes(rest).moments] * 2, RowsApart(F)
    scans = [
        kept_of(tmp_path, rest).scan(moments, none, none, ASKED._replace(listed=n), 2)[0] for n in (7, ASKED.listed)
    ]
    np.testing.assert_array_equal(scans[0].pairs, scans[1].pairs[:7])
    assert scans[0].n_above == scans[1].n_above == len(scans[1].pairs)


def test_no_rows_and_rows_without_codes(tmp_path: Path) -> None:
    kept = kept_of(tmp_path, np.zeros((4, F), np.float32))
    none = RowsApart(F)
    (found, _) = kept.scan([codes(np.zeros((4, F), np.float32)).moments] * 2, none, none, ASKED, 3)
    assert (found.n_above, found.n_pairs, found.near.max()) == (0, 0, -1)
    assert kept.lookup(np.array([1]), np.array([2]))[0].tolist() == [0.0]
    kept.n_rows = MAX_ROWS
    with pytest.raises(OverflowError, match="at most"):
        kept.add(codes(np.ones((1, F), np.float32)))


def test_pairs_that_never_met_are_counted_without_a_visit() -> None:
    ratio = np.sort(np.random.default_rng(0).exponential(0.3, 400))
    i, j = np.triu_indices(400, 1)
    r = np.maximum(-1.0, -(ratio[i] * ratio[j]))
    want = np.bincount(np.minimum(BINS - 1, ((r + 1) * 0.5 * BINS).astype(int)), minlength=BINS)
    np.testing.assert_array_equal(unmet_histogram(ratio, BINS), want)
    assert unmet_histogram(ratio[:1], BINS).sum() == 0


def test_the_size_of_the_triangle_decides(tmp_path: Path) -> None:
    assert isinstance(pairs_for(4608, tmp_path, 4.0), PairSums)
    assert isinstance(pairs_for(131_072, tmp_path, 4.0), KeptPairs)


def test_a_report_says_the_same_either_way(world: World, tmp_path: Path) -> None:
    """The whole analysis from kept codes, in two processes, against the fixture's, which has the triangle."""
    settings = CorrelationConfig(latents=NAMED, triangle_gb=0.0)
    run = world.made.run(tmp_path / "runs").path
    config = AnalyzeConfig(out=tmp_path / "out", controls=False, reports={"correlation": settings}, processes=2)
    folder = analyze([run], config).report.parent
    assert list((tmp_path / "out").iterdir()) == [folder]  # the codes are not left beside it
    document = json.loads((folder / "report.json").read_text())["runs"][0]["reports"]["correlation"]
    assert rounded(document) == rounded(world.document["runs"][0]["reports"]["correlation"])
    for table in ("pairs", "neighbours"):
        want = world.table(table)
        found = pq.read_table(folder / "planted" / f"{table}.parquet").to_pydict()
        assert len(found["r"]) > 3
        for column, values in found.items():
            if isinstance(values[0], float):
                np.testing.assert_allclose(values, want[column], rtol=1e-6, atol=1e-12)
            else:
                assert values == want[column], column


def rounded(value: object) -> object:
    """Floats to nine digits: sums may be added in another order."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value
