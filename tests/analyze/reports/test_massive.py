"""A cache with one outlying dimension and 0.1 % massive rows: figures with and without them equal numpy's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparse_pipeline.analyze.reports.correlation.config import CorrelationConfig
from sparse_pipeline.analyze.reports.position import counts as counting
from sparse_pipeline.analyze.reports.position.config import PositionConfig
from sparse_pipeline.analyze.reports.position.counts import Counts
from sparse_pipeline.analyze.reports.position.report import PositionReport
from sparse_pipeline.analyze.reports.reconstruction.config import ReconstructionConfig
from sparse_pipeline.analyze.reports.top_activations import report as top_activations
from sparse_pipeline.analyze.reports.top_activations.config import TopActivationsConfig
from sparse_pipeline.analyze.stream.batches import stream
from sparse_pipeline.analyze.subject.subject import Subject
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.cache.concentration import DISAGREE, OUTLYING
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.configs.base import Normalise
from sparse_pipeline.shared.coders.normalisation import SiteMoments
from sparse_pipeline.shared.coders.topk import TopKConfig
from tests.analyze.labelled_cache import SITE, report, write_tokenizer
from tests.synthetic import make_cache, place_and_position, sparse_acts, token_table

WIDTH, PLANTED, N_SEQ, CTX = 24, 5, 512, 32
KINDS: tuple[Normalise, ...] = ("scalar", "per_dimension", "whiten")
CORRELATION = CorrelationConfig(threshold=0.5, min_fired=5, min_both=2)


@dataclass(frozen=True)
class Made:
    """The cache with its rows in float64; rest: text excluding position 0; massive: planted."""

    cache: Cache
    x: NDArray[np.float64]
    position: NDArray[np.int64]
    rest: NDArray[np.bool_]
    massive: NDArray[np.bool_]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    table = token_table(N_SEQ, CTX, vocab=7, packing="apart")
    x = sparse_acts(table, {SITE: WIDTH})[SITE].float()
    position = place_and_position(table)[1]
    rest = (position > 0) & ((table.flags.reshape(-1) & 4) == 0)
    rng = np.random.default_rng(2)
    x[:, PLANTED] = torch.from_numpy(30 + rng.standard_normal(len(x)).astype(np.float32) * 3)
    massive = np.zeros(len(x), np.bool_)
    massive[rng.choice(np.flatnonzero(rest), len(x) // 1000, replace=False)] = True
    x[massive, PLANTED] = 600
    x[massive] += torch.from_numpy(rng.standard_normal((massive.sum(), WIDTH)).astype(np.float32)) * 6
    cache = make_cache(
        tmp_path_factory.mktemp("massive") / "cache", N_SEQ, CTX, table=table, acts={SITE: x}, shard_rows=4096
    )
    write_tokenizer(cache.path / "tokenizer.json")
    np.testing.assert_array_equal(cache.outliers(SITE).mask(cache.n_rows), massive)
    return Made(cache, x.double().numpy(), position, rest, massive)


def coder_of(made: Made, kind: Normalise) -> Coder:
    config = TopKConfig(latents=48, k=6, normalise=kind)
    coder = build_coder(config, WIDTH, WIDTH, tied=True, generator=torch.Generator().manual_seed(0))
    ordinary = torch.from_numpy(made.x[made.rest & ~made.massive])
    moments = SiteMoments(ordinary.mean(0), ordinary.var(0, correction=0), torch.from_numpy(np.cov(ordinary.T)))
    coder.set_normalisation(moments, moments)
    return coder.eval()


def coded(made: Made, coder: Coder) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(codes [n, F], reconstructions [n, d]) of all rows."""
    with torch.no_grad():
        x = torch.from_numpy(made.x).float()
        codes = coder.encode(x)
        return codes.dense().double().numpy(), coder.decode(codes, x).double().numpy()


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction(made: Made, kind: Normalise, halves: bool) -> None:
    coder = coder_of(made, kind)
    z, y_hat = coded(made, coder)
    found = report("global", ReconstructionConfig(), made.cache, coder, halves)
    for mask, key in ((made.rest, "value"), (made.rest & ~made.massive, "without_massive")):
        y = made.x[mask]
        error, variance = ((y - y_hat[mask]) ** 2).sum(0), ((y - y.mean(0)) ** 2).sum(0)
        assert getattr(found.figure("fvu"), key) == pytest.approx(error.sum() / variance.sum(), rel=1e-5)
        assert getattr(found.figure("fvu_dims"), key) == pytest.approx((error / variance).mean(), rel=1e-5)
        fires = z[mask] > 0
        assert getattr(found.figure("l0"), key) == pytest.approx(fires.sum(1).mean(), rel=1e-12)
        assert getattr(found.figure("dead"), key) == (~fires.any(0)).sum()
        assert getattr(found.figure("ultra_dense"), key) == (fires.mean(0) > 0.1).sum()
    deviation = (made.x[made.rest] - made.x[made.rest].mean(0)) ** 2
    assert found.figure("outlying_share").value == pytest.approx(deviation[:, PLANTED].sum() / deviation.sum())
    share = deviation[made.massive[made.rest]].sum() / deviation.sum()
    assert found.figure("massive_share").value == pytest.approx(share)
    fvu, dims = found.figure("fvu").value, found.figure("fvu_dims").value
    assert fvu is not None
    assert dims is not None
    warned = dims > DISAGREE * fvu and float(found.figure("outlying_share").value or 0) > OUTLYING
    assert ("1 dimension of 24" in found.lead) == warned
    assert warned or kind != "scalar"


@pytest.mark.parametrize("halves", [False, True])
def test_correlation(made: Made, halves: bool) -> None:
    coder = coder_of(made, "per_dimension")
    z, _ = coded(made, coder)
    found = report("correlation", CORRELATION, made.cache, coder, halves)
    above = {}
    for mask, key in ((made.rest, "value"), (made.rest & ~made.massive, "without_massive")):
        rows = z[mask]
        fires = (rows > 0).astype(np.float64)
        with np.errstate(invalid="ignore"):
            r = np.corrcoef(rows.T)
        np.fill_diagonal(r, np.nan)
        scored = fires.sum(0) >= CORRELATION.min_fired
        r[~scored], r[:, ~scored] = np.nan, np.nan
        pairs = (np.abs(r) > CORRELATION.threshold) & (fires.T @ fires >= CORRELATION.min_both)
        above[key] = int(np.triu(pairs, 1).sum())
        assert getattr(found.figure("n_pairs_above"), key) == above[key]
        nearest = np.nanmax(np.where(np.isnan(r).all(1, keepdims=True), -2, r), axis=1)[scored]
        assert getattr(found.figure("largest_r"), key) == pytest.approx(np.nanmax(r), abs=1e-6)
        assert getattr(found.figure("mean_max_r"), key) == pytest.approx(nearest.mean(), abs=1e-6)
    assert above["value"] > above["without_massive"]
    pairs_table = found.tables_on_disk["pairs"]
    i, j = pairs_table["i"], pairs_table["j"]
    r = np.corrcoef(z[made.rest & ~made.massive].T)[i, j]
    np.testing.assert_allclose(pairs_table["r_without_massive"], r, atol=1e-9)


def subject_of(made: Made, coder: Coder) -> Subject:
    return Subject("planted", "run", coder, made.cache, SITE, SITE, Vocabulary.of(made.cache), tuple(made.cache.shards))


def test_position(made: Made) -> None:
    """The same as if massive rows had neither been counted nor fired; shifts included."""
    coder, config = coder_of(made, "per_dimension"), PositionConfig(min_fired=20, shifts=10)
    of = subject_of(made, coder)
    every, fewer = PositionReport(config, of), PositionReport(config, of)
    for (batch,) in stream(made.cache, [of.coder_sites(False)], of.shards):
        every.update(batch)
        fewer.update(replace(batch, codes=batch.codes.where(~of.massive_of(batch.rows))))
    counts = every.counts
    assert isinstance(counts, Counts)
    assert counts.massive is not None
    z, _ = coded(made, coder)
    ordinary = made.rest & ~made.massive
    firings = np.stack([(z[ordinary & (made.position == p)] > 0).sum(0) for p in range(1, CTX)], axis=1)
    np.testing.assert_array_equal((counts.firings - counts.massive.firings)[:, 1:], firings)
    rows = np.bincount(made.position[ordinary], minlength=CTX)
    np.testing.assert_array_equal((counts.rows - counts.massive.rows)[1:], rows[1:])
    assert isinstance(fewer.counts, Counts)
    np.testing.assert_array_equal(counts.shifted - counts.massive.shifted, fewer.counts.shifted)
    whole, merged = (report("position", config, made.cache, coder, halves) for halves in (False, True))
    assert whole.figure("mi_excess").without_massive is not None
    assert whole.figure("mi_excess").without_massive == merged.figure("mi_excess").without_massive
    assert len(whole.tables_on_disk["position"]["mi_excess_without_massive"]) == coder.n_latents


def test_position_counted_in_blocks_of_latents_is_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a wide dictionary: codes on disk, counted for a few latents at a time, massive rows apart."""
    coder, config = coder_of(made, "per_dimension"), PositionConfig(min_fired=20, shifts=10)
    at_once = report("position", config, made.cache, coder)
    monkeypatch.setattr(counting, "COUNTED_BYTES", 0)
    monkeypatch.setattr(counting, "BLOCK_BYTES", 7 * counting.latent_bytes(subject_of(made, coder), config))
    in_blocks = report("position", config, made.cache, coder, halves=True)
    assert in_blocks.figures == at_once.figures
    assert in_blocks.charts == at_once.charts
    for name, column in at_once.tables_on_disk["position"].items():
        np.testing.assert_array_equal(in_blocks.tables_on_disk["position"][name], column, err_msg=name)


def test_examples_read_from_codes_on_disk_are_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a wide dictionary: the activations around an example come from the codes of the pass."""
    coder = coder_of(made, "per_dimension")
    at_once = report("top_activations", TopActivationsConfig(), made.cache, coder)
    monkeypatch.setattr(top_activations, "WINDOW_BYTES", 0)
    from_disk = report("top_activations", TopActivationsConfig(), made.cache, coder, halves=True)
    assert at_once.panel is not None
    assert from_disk.panel is not None
    shown = [at_once.panel(i) for i in range(coder.n_latents)]
    assert [from_disk.panel(i) for i in range(coder.n_latents)] == shown
    around = [item[6] for panel in shown for group in panel[0].get("groups", []) for item in group["items"]]
    assert sum(sum(value > 0 for value in heat) > 1 for heat in around if heat) > 100  # there is something around


def test_a_cache_without_massive_rows_has_no_twin(tmp_path: Path) -> None:
    table = token_table(64, 16, vocab=7)
    acts = {SITE: sparse_acts(table, {SITE: WIDTH})[SITE].float() + 2}
    cache = make_cache(tmp_path / "cache", table=table, acts=acts)
    write_tokenizer(cache.path / "tokenizer.json")
    assert not len(cache.outliers(SITE).rows)
    config = TopKConfig(latents=48, k=6)
    coder = build_coder(config, WIDTH, WIDTH, tied=True, generator=torch.Generator().manual_seed(0)).eval()
    for kind, settings in (
        ("global", ReconstructionConfig()),
        ("correlation", CORRELATION),
        ("position", PositionConfig()),
    ):
        found = report(kind, settings, cache, coder)
        assert all(figure.without_massive is None for figure in found.figures)
        for columns in found.tables_on_disk.values():
            assert all(np.isnan(column).all() for name, column in columns.items() if name.endswith("_without_massive"))
