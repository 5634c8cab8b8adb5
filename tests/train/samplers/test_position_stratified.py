"""The cap is a cap: over whole epochs, across windows, at any batch size. Thinning is a hash, so it resumes exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparse_pipeline.shared.cache import Cache, Flag
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.data.stream import open_stream
from sparse_pipeline.train.samplers import Window, build_sampler
from sparse_pipeline.train.samplers.position_stratified import (
    PositionStratified,
    PositionStratifiedConfig,
    allowed_places,
    hashed,
    most_bos,
)
from tests.synthetic import make_cache

SITE = ["layer_01.resid_mid"]


def window(n: int = 4000, ctx: int = 40, batch_size: int = 100, **changes: object) -> Window:
    row = np.arange(n, dtype=np.int64)
    position = (row % ctx).astype(np.int32)
    flags = np.where(position == 0, int(Flag.BOS), 0).astype(np.uint8)
    return replace(Window(row, position, flags, 0, 0, 0, ctx, batch_size), **changes)  # type: ignore[arg-type]


def build(**settings: object) -> PositionStratified:
    sampler = build_sampler(PositionStratifiedConfig(**settings))  # type: ignore[arg-type]
    assert isinstance(sampler, PositionStratified)
    return sampler


def most_in_a_run(is_bos: np.ndarray, length: int) -> int:
    """The most position-0 rows among any `length` rows in a row."""
    sums = np.concatenate([[0], np.cumsum(is_bos)])
    return int((sums[length:] - sums[:-length]).max())


# --- the arithmetic of the cap


@pytest.mark.parametrize("batch_size", [1, 4, 5, 7, 64, 100, 1023, 1024])
@pytest.mark.parametrize("share", [0.0, 0.2, 1 / 3, 0.5, 0.99, 1.0])
def test_any_run_of_a_batch_holds_no_more_than_the_cap_also_across_windows(batch_size: int, share: float) -> None:
    rng = np.random.default_rng(0)
    pieces = []
    for n in [*rng.integers(0, 3 * batch_size, 40).tolist(), 5 * batch_size, 1, 2]:
        at = np.zeros(n, bool)
        at[allowed_places(n, batch_size, share)] = True
        pieces.append(at)
    everything = np.concatenate(pieces)
    most = int(share * batch_size + 1e-9)
    assert most_in_a_run(everything, batch_size) <= most
    if most:  # … and the cap is used, not only kept
        assert most_in_a_run(everything, batch_size) == most


@pytest.mark.parametrize(("batch_size", "share"), [(100, 0.2), (7, 0.3), (1024, 0.2), (10, 0.0), (3, 0.9)])
def test_as_many_rows_are_drawn_as_have_a_place(batch_size: int, share: float) -> None:
    for n_rest in range(0, 300, 7):
        most = most_bos(n_rest, batch_size, share)
        fits = [len(allowed_places(n_rest + b, batch_size, share)) >= b for b in range(most + 2)]
        assert fits == [True] * (most + 1) + [False]


# --- one window


def test_the_factor_is_the_share_of_position_zero_that_is_drawn() -> None:
    drawn = build().order(window(200_000))
    assert (drawn % 40 == 0).sum() == pytest.approx(0.3 * 5000, rel=0.07)
    assert (drawn % 40 != 0).sum() == 195_000  # all others, each once
    assert len(set(drawn.tolist())) == len(drawn)
    none, everything = build(bos_factor=0.0).order(window()), build(bos_factor=1.0).order(window())
    assert (none % 40 == 0).sum() == 0
    assert (everything % 40 == 0).sum() == 100


def test_which_rows_depends_on_seed_epoch_and_row_alone() -> None:
    def drawn_bos(seen: Window) -> set[int]:
        rows = seen.row[build(bos_factor=0.5).order(seen)]
        return set(rows[rows % 40 == 0].tolist())

    whole = drawn_bos(window())
    half = window()
    half = replace(half, row=half.row[:2000], position=half.position[:2000], flags=half.flags[:2000], index=3)
    assert drawn_bos(half) == {row for row in whole if row < 2000}  # however the windows are cut
    assert drawn_bos(window(epoch=1)) != whole != drawn_bos(window(seed=1))
    both = [drawn_bos(window(epoch=epoch)) for epoch in range(8)]
    assert set.union(*both) == set(range(0, 4000, 40))  # over the epochs, every one has its turn


def test_the_hash_is_uniform_and_without_a_pattern() -> None:
    score = hashed(np.arange(100_000, dtype=np.int64), 3, 7)
    assert np.histogram(score, 10, (0, 1))[0] == pytest.approx(10_000, rel=0.05)
    assert abs(np.corrcoef(score[1:], score[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(score, hashed(np.arange(100_000, dtype=np.int64), 3, 8))[0, 1]) < 0.02


def test_beyond_the_cap_the_smallest_hashes_stay() -> None:
    seen = window(ctx=2)
    drawn = build(bos_factor=1.0).order(seen)
    bos = np.sort(seen.row[drawn[drawn % 2 == 0]])
    assert len(bos) == most_bos(2000, 100, 0.2) == 499
    score = hashed(seen.row, 0, 0)
    even = seen.row[::2]
    assert bos.tolist() == np.sort(even[np.argsort(score[even])[:499]]).tolist()
    assert most_in_a_run(drawn % 2 == 0, 100) == 20


def test_balanced_draws_every_bin_alike() -> None:
    seen = window()
    cut = (seen.position <= 9) | (seen.row < 800)  # most sequences end after 9 tokens
    seen = replace(seen, row=seen.row[cut], position=seen.position[cut], flags=seen.flags[cut])
    position = seen.position[build(balanced=True, bins=3).order(seen)]
    counts = np.histogram(position[position > 0], [1, 14, 27, 40])[0]
    assert counts.tolist() == [260, 260, 260]
    loose = seen.position[build(balanced=False).order(seen)]
    assert (loose > 0).sum() == (seen.position > 0).sum()


def test_a_bos_in_the_middle_of_a_sequence_counts_as_one(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=60, ctx=16, packing="apart", doc_length=(3, 20))
    data = DataConfig(batch_size=50, epochs=1, pool_rows=200, block_rows=32, heldout=0.0)
    with open_stream(cache, SITE, data, build(bos_factor=0.0)) as stream:
        rows = np.concatenate([batch.row.numpy() for batch in stream])
    text = np.flatnonzero((cache.flags & int(Flag.BOS | Flag.PADDING)) == 0)
    assert len(set(rows.tolist()) & set(text.tolist())) == len(rows) > len(text) - 50  # the last batch may be short


# --- a stream


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Sequences of 3 tokens: a third of all rows is at position 0."""
    return make_cache(tmp_path_factory.mktemp("stratified") / "c", n_seq=600, ctx=3, shard_rows=300)


@pytest.mark.parametrize("batch_size", [10, 48, 128])
@pytest.mark.parametrize("pool_rows", [64, 300, None])
def test_no_batch_of_three_epochs_holds_more_than_a_fifth(cache: Cache, batch_size: int, pool_rows: int | None) -> None:
    data = DataConfig(batch_size=batch_size, epochs=3, pool_rows=pool_rows, block_rows=16, heldout=0.1)
    with open_stream(cache, SITE, data, build(bos_factor=1.0)) as stream:
        shares = [int((batch.position == 0).sum()) for batch in stream]
        expected = stream.total_steps
    assert len(shares) == expected
    assert max(shares) <= int(0.2 * batch_size)
    assert np.mean(shares) > 0.15 * batch_size  # the cap is used: a third would be there without


ADAPTIVE = {"adaptive": True, "ema": 0.5, "max_bos_share": 0.5, "bos_factor": 1.0}


@pytest.mark.parametrize("changes", [{}, {"prefetch": 0}, {"prefetch": 3}, {"resident": True}])
def test_adaptive_the_same_rows_however_they_are_read_and_wherever_it_stops(
    cache: Cache, changes: dict[str, object]
) -> None:
    data = DataConfig(batch_size=50, epochs=4, pool_rows=192, block_rows=16, resident=False)

    def run(settings: DataConfig, stop: int, start: dict[str, object] | None = None) -> tuple[list[int], dict]:  # type: ignore[type-arg]
        rows: list[int] = []
        with open_stream(cache, SITE, settings, build(**ADAPTIVE), start) as stream:
            for batch in stream:
                rows += batch.row.tolist()
                stream.sampler.observe(1 + float(batch.row.double().mean()) / 300)  # each batch its own
                if len(rows) == 50 * stop:
                    return rows, stream.position()
        return rows, {}

    whole, _ = run(data, 10**6)
    again, _ = run(replace(data, **changes), 10**6)  # type: ignore[arg-type]
    assert again == whole
    shares = [np.mean(np.array(whole[i : i + 50]) % 3 == 0) for i in range(0, len(whole), 50)]
    assert np.mean(shares[-20:]) < 0.7 * np.mean(shares[:5])  # it did adapt
    for stop in (1, 7, 23):
        first, position = run(data, stop)
        rest, _ = run(replace(data, **changes), 10**6, position)  # type: ignore[arg-type]
        assert first + rest == whole


@pytest.mark.parametrize("enrichment", [0.2, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_the_factor_gives_position_0_its_share_of_the_activation(enrichment: float, ratio: float) -> None:
    """The oracle: with rows at position 0 that activate `enrichment` times as strongly, count the activation drawn."""
    sampler = build(adaptive=True, target_ratio=ratio, ema=0.0, min_factor=0.0, max_bos_share=1.0)
    assert sampler.control() is None, "nothing observed yet: bos_factor"
    sampler.observe(enrichment)
    assert sampler.control() == pytest.approx(enrichment)
    assert sampler.metrics() == {"sampler/bos_enrichment": pytest.approx(enrichment)}
    seen = window(400_000, control=sampler.control())
    at_zero = seen.position[sampler.order(seen)] == 0
    share = at_zero.sum() * enrichment / (at_zero.sum() * enrichment + (~at_zero).sum())
    all_of_them = enrichment / (enrichment + 39)  # no factor above 1
    assert share == pytest.approx(min(ratio / 40, all_of_them), rel=0.1)


def test_the_factor_stays_within_its_bounds_and_the_average_moves_slowly() -> None:
    sampler = build(adaptive=True, ema=0.9, min_factor=0.2, max_factor=0.6)
    for enrichment, expected in ((1e9, 0.2), (1e-9, 0.6)):
        for _ in range(300):
            sampler.observe(enrichment)
        assert sampler.factor(100, 3900, window(control=sampler.control())) == expected
    before = sampler.control()
    sampler.observe(None)  # a batch without rows at position 0
    assert sampler.control() == before
    sampler.observe(1.0)
    assert np.log(sampler.control()) == pytest.approx(0.9 * np.log(before))
    assert build().control() is None


def test_the_factor_takes_effect_in_the_very_next_pool(cache: Cache) -> None:
    data = DataConfig(batch_size=50, epochs=1, pool_rows=192, block_rows=16, resident=False, heldout=0.0)
    sampler = build(adaptive=True, bos_factor=1.0, max_bos_share=1.0, ema=0.0, min_factor=0.0)
    shares: list[float] = []
    with open_stream(cache, SITE, data, sampler) as stream:
        for batch in stream:
            shares.append(float((batch.position == 0).double().mean()))
            stream.sampler.observe(1e6)
    first = sum(index < 192 // 50 for index in range(len(shares)))
    assert min(shares[:first]) > 0.2
    assert max(shares[first + 1 :]) == 0


@pytest.mark.parametrize(
    ("idle", "says"),
    [
        ({"bins": 10}, "bins: 10 does nothing with balanced: false"),
        ({"target_ratio": 2.0}, "target_ratio: nothing uses this with adaptive: false"),
        ({"ema": 0.5, "max_factor": 0.5}, "ema, max_factor: nothing uses this"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(idle: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(**idle)
    assert build(**idle, balanced=True, adaptive=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bos_factor": 1.5},
        {"max_bos_share": -0.1},
        {"bins": 0, "balanced": True},
        {"min_factor": 1.0, "max_factor": 0.5, "adaptive": True},
        {"target_ratio": 0.0, "adaptive": True},
        {"ema": 1.0, "adaptive": True},
    ],
)
def test_settings_that_cannot_be_used(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(**wrong)


def test_position_zero_is_a_fifth_of_training_at_most(tmp_path: Path) -> None:
    """The case this sampler is for: without it a third of all rows is one vector."""
    cache = make_cache(tmp_path / "c", n_seq=200, ctx=3)
    data = DataConfig(batch_size=20, epochs=1)
    with open_stream(cache, SITE, data, build()) as stream:
        position = np.concatenate([batch.position.numpy() for batch in stream])
    assert 0.05 < (position == 0).mean() <= 0.2
