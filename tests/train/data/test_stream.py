from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import Cache, Flag
from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.data.reader import Pool, Segment, shares
from sparse_pipeline.train.data.stream import Stream, open_stream
from sparse_pipeline.train.samplers import ExcludeBos, Sampler, Uniform, UniformConfig, Window
from sparse_pipeline.train.samplers.exclude_bos import ExcludeBosConfig
from tests.synthetic import make_cache

SITES = ["layer_01.resid_mid", "layer_01.mlp_out"]
SMALL = DataConfig(batch_size=50, epochs=3, pool_rows=300, block_rows=32, workers=3, resident=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_cache(tmp_path_factory.mktemp("stream") / "c", n_seq=130, ctx=16, shard_rows=400, packing="document")


def uniform() -> Sampler:
    return Uniform(UniformConfig())


def drain(stream: Stream) -> list[Batch]:
    with stream:
        return list(stream)


def rows_of(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.row.numpy() for batch in batches])


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, resident=True),
        replace(SMALL, resident="mapped"),
        replace(SMALL, prefetch=0),
        replace(SMALL, prefetch=3),
        replace(SMALL, pool_rows=32, batch_size=200),  # a batch of many windows
        replace(SMALL, pool_rows=None),
        replace(SMALL, block_rows=1000, pool_rows=1000),  # a block is a shard
        replace(SMALL, heldout=0.0, batch_size=7),
    ],
)
def test_every_training_row_once_per_epoch(cache: Cache, config: DataConfig) -> None:
    stream = open_stream(cache, SITES, config, uniform())
    train = np.flatnonzero(stream.split.train)
    assert stream.plan.rows_per_epoch == stream.plan.train_rows == len(train)
    batches = drain(stream)
    assert len(batches) == stream.total_steps == 3 * len(train) // config.batch_size
    assert {len(batch) for batch in batches} == {config.batch_size}
    rows = rows_of(batches)
    for epoch in range(2):
        np.testing.assert_array_equal(np.sort(rows[epoch * len(train) : (epoch + 1) * len(train)]), train)
    last = rows[2 * len(train) :]
    assert len(np.unique(last)) == len(last) > len(train) - config.batch_size
    assert rows[: len(train)].tolist() != rows[len(train) : 2 * len(train)].tolist()


@pytest.mark.parametrize("packing", ["document", "apart"])
def test_a_batch_says_what_its_rows_are(packing: str, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=130, ctx=16, shard_rows=400, packing=packing)
    for batch in drain(open_stream(cache, [*SITES, SITES[0]], SMALL, uniform())):
        row = batch.row.numpy()
        for site in SITES:
            assert torch.equal(batch.acts[site], cache.rows(site, row))
        assert batch.acts[SITES[0]].dtype == torch.bfloat16
        np.testing.assert_array_equal(batch.tokens, cache.tokens.reshape(-1)[row])
        bos = (cache.flags.reshape(-1)[row] & int(Flag.BOS)) != 0
        np.testing.assert_array_equal(batch.position, np.where(bos, 0, row % 16))
        np.testing.assert_array_equal(batch.pos_in_doc, cache.pos_in_doc.reshape(-1)[row])
        np.testing.assert_array_equal(batch.doc_id, cache.doc_id.reshape(-1)[row])
        np.testing.assert_array_equal(batch.flags, cache.flags.reshape(-1)[row])
        assert not (batch.flags & Flag.PADDING).any()


@pytest.mark.parametrize("chunk_rows", [0, 80])
@pytest.mark.parametrize("how", ["pools", "resident", "mapped", "staged"])
def test_quantised_and_sharded_sites_come_as_the_cache_reads_them(tmp_path: Path, how: str, chunk_rows: int) -> None:
    """Codes in the pools, the same bits in the batches as Cache.chunk gives; less memory than bfloat16 takes."""
    made = make_cache(
        tmp_path / "c",
        n_seq=130,
        ctx=16,
        shard_rows=400,
        sites={"layer_01.resid_mid": 32, "layer_01.mlp_out": 32, "layer_02.mlp_out": 32},
        quantised={"layer_01.resid_mid": "int8", "layer_01.mlp_out": "fp8"},
        chunk_rows=chunk_rows,
    )
    config = replace(SMALL, epochs=1, resident="mapped" if how == "mapped" else how == "resident")
    sites = list(made.sites)
    stream = Stream(
        made, sites, config, uniform(), None, torch.device("cpu"), staging_bytes=1 << 20 if how == "staged" else None
    )
    pools = {"resident": 1, "mapped": 0}.get(how, 2)
    assert stream.plan.pool_bytes == stream._capacity * (36 + 36 + 64) * pools
    whole = {site: torch.cat([made.chunk(site, shard) for shard in made.shards]) for site in sites}
    batches = drain(stream)
    for batch in batches:
        for site in sites:
            assert batch.acts[site].dtype == torch.bfloat16
            assert torch.equal(batch.acts[site], whole[site][batch.row])
            assert torch.equal(batch.acts[site], made.rows(site, batch.row))
    plain = make_cache(tmp_path / "p", n_seq=130, ctx=16, shard_rows=400)
    assert rows_of(batches).tolist() == rows_of(drain(open_stream(plain, SITES, config, uniform()))).tolist()


@pytest.mark.parametrize("resident", [False, True, "mapped"])
def test_a_stream_goes_on_exactly_where_a_position_says(cache: Cache, resident: Any) -> None:
    config = replace(SMALL, resident=resident, epochs=2)
    stream = open_stream(cache, SITES, config, uniform())
    start, batches, positions = stream.position(), [], []
    with stream:
        for batch in stream:
            batches.append(batch)
            positions.append(stream.position())
    assert all(isinstance(value, int) for position in positions for value in position.values())
    for done in [0, *range(1, len(batches) + 1, 7), len(batches)]:
        position = positions[done - 1] if done else start
        rest = drain(open_stream(cache, SITES, config, uniform(), position))
        assert [batch.row.tolist() for batch in rest] == [batch.row.tolist() for batch in batches[done:]]
        assert all(torch.equal(a.acts[SITES[1]], b.acts[SITES[1]]) for a, b in zip(rest, batches[done:], strict=True))


def test_the_order_does_not_hang_on_how_it_is_read(cache: Cache) -> None:
    want = rows_of(drain(open_stream(cache, SITES, SMALL, uniform())))
    for changes in ({"resident": True}, {"resident": "mapped"}, {"prefetch": 0}, {"workers": 1}, {"memory_gb": 0.1}):
        found = rows_of(drain(open_stream(cache, SITES[:1], replace(SMALL, **changes), uniform())))
        np.testing.assert_array_equal(found, want)
    other = rows_of(drain(open_stream(cache, SITES, replace(SMALL, seed=1), uniform())))
    assert other.tolist() != want.tolist()


def test_a_position_keeps_the_windows_it_was_made_with(cache: Cache) -> None:
    """The memory that is free when a run resumes may differ; the order must not."""
    auto = replace(SMALL, pool_rows=None, memory_gb=300 * (256 + 64) * 1e-9)
    stream = open_stream(cache, SITES, auto, uniform())
    assert stream.plan.n_windows > 3
    with stream:
        first = [next(stream) for _ in range(9)]
        position = stream.position()
    whole = rows_of(drain(open_stream(cache, SITES, auto, uniform())))
    rest = rows_of(drain(open_stream(cache, SITES, replace(auto, memory_gb=1.0), uniform(), position)))
    np.testing.assert_array_equal(np.concatenate([rows_of(first), rest]), whole)


def test_tokens_decide_over_epochs(cache: Cache) -> None:
    stream = open_stream(cache, SITES, replace(SMALL, tokens=5049, epochs=1), uniform())
    assert stream.total_steps == 100
    batches = drain(stream)
    n = stream.plan.rows_per_epoch
    assert len(batches) == 100
    assert 2 * n < 5000
    np.testing.assert_array_equal(np.sort(rows_of(batches)[:n]), np.sort(rows_of(batches)[n : 2 * n]))


def test_a_sampler_may_thin(cache: Cache) -> None:
    stream = open_stream(cache, SITES, SMALL, ExcludeBos(ExcludeBosConfig()))
    train = np.flatnonzero(stream.split.train)
    rows = rows_of(drain(stream))
    kept = train[train % 16 != 0]
    assert stream.plan.rows_per_epoch == len(kept) < len(train)
    np.testing.assert_array_equal(np.sort(rows[: len(kept)]), kept)


def test_the_shuffle_reaches_across_the_pool(cache: Cache) -> None:
    """Neighbours in a batch are no neighbours in the cache."""
    rows = rows_of(drain(open_stream(cache, SITES, replace(SMALL, pool_rows=None), uniform())))
    assert (np.abs(np.diff(rows)) == 1).mean() < 0.01


class Nothing(Sampler):
    """Draws from the first epoch only."""

    config_class = UniformConfig

    def order(self, window: Window) -> np.ndarray:
        return np.arange(len(window) if window.epoch == 0 else 0, dtype=np.int64)


def test_a_sampler_that_draws_nothing_is_an_error_and_no_endless_loop(cache: Cache) -> None:
    stream = open_stream(cache, SITES, replace(SMALL, tokens=10_000), Nothing(UniformConfig()))
    with pytest.raises(UsageError, match="drew no row from a whole epoch"):
        drain(stream)


@pytest.mark.parametrize("resident", [False, True])
def test_staging_buffers_give_the_same_batches(cache: Cache, resident: bool) -> None:
    """The road to a device, with a host pool at its end and buffers of one shard, so that several pieces are needed."""
    config = replace(SMALL, resident=resident, pool_rows=900)
    plain = drain(open_stream(cache, SITES, config, uniform()))
    staged = drain(Stream(cache, SITES, config, uniform(), None, torch.device("cpu"), staging_bytes=1))
    for a, b in zip(plain, staged, strict=True):
        assert torch.equal(a.row, b.row)
        assert all(torch.equal(a.acts[site], b.acts[site]) for site in SITES)


def test_pages_are_given_back_when_the_data_exceed_the_memory(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[tuple[int, int]] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            given_back.append((offset, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr("sparse_pipeline.train.data.stream.free_memory", lambda device, processes: 100_000)
    stream = open_stream(cache, SITES, replace(SMALL, epochs=1), uniform())
    rows = rows_of(drain(stream))
    assert len(rows) == stream.total_steps * 50
    assert sum(length for _, length in given_back) == 2 * 64 * stream._blocks.n_rows  # two sites, 64 bytes a row
    given_back.clear()
    drain(open_stream(cache, SITES, replace(SMALL, epochs=1, resident=True), uniform()))
    assert not given_back


def test_memory_is_bounded_by_the_pools(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Pool] = []
    allocate = Pool.allocate.__func__

    def counted(cls, *args) -> Pool:
        made.append(allocate(cls, *args))
        return made[-1]

    monkeypatch.setattr(Pool, "allocate", classmethod(counted))
    config = replace(SMALL, pool_rows=96, prefetch=2, epochs=5)
    stream = open_stream(cache, SITES, config, uniform())
    drain(stream)
    assert len(made) == 3
    assert sum(pool.bytes for pool in made) == stream.plan.pool_bytes == 3 * 96 * 128


def test_a_chunk_cut_while_training_is_an_error_that_names_it(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=130, ctx=16, shard_rows=400)
    stream = open_stream(cache, SITES, SMALL, uniform())
    file = cache.path / "acts.zarr" / SITES[1] / "c.2.0"
    with file.open("r+b") as handle:
        handle.truncate(1000)
    with pytest.raises(DataError, match=r"c\.2\.0 has 1,000 bytes, expected [\d,]+ or more"):
        drain(stream)


def test_mapped_rows_are_read_once_and_let_go(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their blocks are brought into the system's cache before they are drawn from, in the first epoch alone."""
    read: list[int] = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        read.append(preadv(descriptor, buffers, offset))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    files = str(cache.path)
    stream = open_stream(cache, SITES, replace(SMALL, resident="mapped", prefetch=0), uniform())
    assert stream.plan.pool_bytes == 0
    with stream:
        batches = [next(stream)]
        assert 0 < sum(read) < 2 * 64 * cache.n_rows / 4  # of one window
        assert files in Path("/proc/self/maps").read_text()
        batches += stream
    assert sum(read) == 2 * 64 * stream._blocks.n_rows
    for batch in batches[::20]:
        assert torch.equal(batch.acts[SITES[1]], cache.rows(SITES[1], batch.row))
    assert files not in Path("/proc/self/maps").read_text()


def test_a_chunk_that_is_too_short_is_not_mapped(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=130, ctx=16, shard_rows=400)
    stream = open_stream(cache, SITES, replace(SMALL, resident="mapped"), uniform())
    with (cache.path / "acts.zarr" / SITES[1] / "c.2.0").open("r+b") as handle:
        handle.truncate(1000)
    with pytest.raises(DataError, match=r"c\.2\.0 has 1,000 bytes, expected 25,600 or more"):
        drain(stream)


def test_reads_are_shared_out_by_rows_whatever_they_are_cut_from() -> None:
    segments = [Segment(3, 0, 100, 0), Segment(3, 500, 7, 100), Segment(3, 900, 60, 107)]
    parts = shares(segments, 40)
    assert [sum(one.rows for one in part) for part in parts] == [40, 40, 40, 40, 7]
    rows = [(one.first + i, one.slot + i) for part in parts for one in part for i in range(one.rows)]
    assert rows == [(one.first + i, one.slot + i) for one in segments for i in range(one.rows)]
    assert {one.shard for part in parts for one in part} == {3}


def test_every_thread_reads_where_all_is_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MB of one shard of one site, on four threads: none reads more than its share."""
    cache = make_cache(tmp_path / "c", n_seq=64, ctx=128, shard_rows=8192, sites={SITES[0]: 1024})
    read: dict[int, int] = {}
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        n = preadv(descriptor, buffers, offset)
        read[descriptor] = max(read.get(descriptor, 0), n)
        return n

    monkeypatch.setattr(os, "preadv", counted)
    config = replace(SMALL, resident=True, workers=4, epochs=1, heldout=0.0, block_rows=8192, pool_rows=8192)
    drain(open_stream(cache, SITES[:1], config, uniform()))
    assert max(read.values()) == 2 * 1024 * 8192 // 4


def test_closing_in_the_middle_leaves_no_thread(cache: Cache) -> None:
    before = threading.active_count()
    stream = open_stream(cache, SITES, replace(SMALL, prefetch=2), uniform())
    next(stream)
    assert threading.active_count() > before
    stream.close()
    stream.close()
    assert threading.active_count() == before
    assert stream.waited_seconds > 0


def test_nothing_is_read_before_the_first_batch(cache: Cache) -> None:
    before = threading.active_count()
    stream = open_stream(cache, SITES, SMALL, uniform())
    assert stream.plan.to_dict()["total_steps"] == stream.total_steps
    assert threading.active_count() == before
    assert stream.waited_seconds == 0


def test_an_incomplete_cache_is_refused(tmp_path: Path) -> None:
    from sparse_pipeline.shared.cache import open_cache

    cache = make_cache(tmp_path / "c")
    (cache.path / "commits/000001.json").unlink()
    with pytest.raises(DataError, match="is incomplete"):
        open_stream(open_cache(cache.path, allow_incomplete=True), SITES, SMALL, uniform())


def test_a_position_of_another_cache_is_refused(cache: Cache) -> None:
    position = {"step": 1, "epoch": 0, "window": 90, "offset": 0, "blocks_per_window": 9}
    with pytest.raises(DataError, match="a data position of window 90 does not fit"):
        open_stream(cache, SITES, SMALL, uniform(), position)


def test_a_site_that_is_not_there(cache: Cache) -> None:
    with pytest.raises(UsageError, match="no site 'layer_07.mlp_out'"):
        open_stream(cache, ["layer_07.mlp_out"], SMALL, uniform())


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [False, True])
def test_on_a_device_the_batches_are_the_same(cache: Cache, resident: bool) -> None:
    config = replace(SMALL, resident=resident)
    host = drain(open_stream(cache, SITES, config, uniform()))
    device = drain(open_stream(cache, SITES, config, uniform(), device="cuda"))
    for a, b in zip(host, device, strict=True):
        assert b.acts[SITES[0]].is_cuda
        assert torch.equal(a.row, b.row.cpu())
        assert all(torch.equal(a.acts[site], b.acts[site].cpu()) for site in SITES)
