from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_pipeline.shared.cache.blocks import WindowPlan, expand, make_blocks, segments, window_rows


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, np.ndarray]:
    n_rows = draw(st.integers(1, 400))
    shard_rows = draw(st.integers(1, 120))
    block_rows = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**32 - 1))
    share = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    wanted = np.random.default_rng(seed).random(n_rows) < share
    return n_rows, shard_rows, block_rows, wanted


@given(shapes())
@settings(deadline=None, max_examples=200)
def test_blocks_hold_every_wanted_row_once_and_never_cross_a_shard(shape) -> None:
    n_rows, shard_rows, block_rows, wanted = shape
    blocks = make_blocks(n_rows, shard_rows, block_rows, wanted)
    rows = window_rows(blocks, np.arange(len(blocks)))
    assert len(np.unique(rows)) == len(rows)
    assert set(np.flatnonzero(wanted)) <= set(rows.tolist())
    assert (blocks.start // shard_rows == (blocks.start + blocks.length - 1) // shard_rows).all()
    assert ((blocks.length >= 1) & (blocks.length <= block_rows)).all()
    for start, length in zip(blocks.start, blocks.length, strict=True):
        assert wanted[start : start + length].any()
        assert (start % shard_rows) % block_rows == 0


@given(shapes(), st.integers(1, 12), st.integers(0, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_the_windows_of_every_epoch_hold_every_block_once(shape, per_window: int, seed: int, epoch: int) -> None:
    blocks = make_blocks(*shape)
    plan = WindowPlan(len(blocks), per_window, seed)
    windows = [plan.blocks(epoch, window) for window in range(plan.n_windows)]
    assert sorted(np.concatenate([*windows, np.empty(0, np.int64)]).tolist()) == list(range(len(blocks)))
    for chosen in windows:
        assert (np.diff(chosen) > 0).all()
        assert 1 <= len(chosen) <= per_window


@given(shapes(), st.integers(1, 5), st.integers(1, 12))
@settings(deadline=None, max_examples=200)
def test_segments_are_the_same_rows_in_fewer_pieces(shape, max_blocks: int, per_window: int) -> None:
    n_rows, shard_rows, block_rows, wanted = shape
    blocks = make_blocks(n_rows, shard_rows, block_rows, wanted)
    if not len(blocks):
        return
    chosen = WindowPlan(len(blocks), per_window, 0).blocks(0, 0)
    start, length = segments(blocks.start[chosen], blocks.length[chosen], shard_rows, max_blocks)
    np.testing.assert_array_equal(expand(start, length), window_rows(blocks, chosen))
    assert (start // shard_rows == (start + length - 1) // shard_rows).all()
    assert (length <= max_blocks * block_rows).all()
    assert len(start) <= len(chosen)


def test_neighbouring_blocks_are_joined() -> None:
    start, length = segments(np.array([0, 8, 16, 32, 40, 48]), np.array([8, 8, 8, 8, 8, 4]), 24, 2)
    assert start.tolist() == [0, 16, 32, 48]  # two blocks at most, a gap at 24, and shards end at 24 and 48
    assert length.tolist() == [16, 8, 16, 4]
    empty, _ = segments(np.empty(0, np.int64), np.empty(0, np.int64), 24, 2)
    assert len(empty) == 0


def test_epochs_and_seeds_differ_and_are_repeatable() -> None:
    plan = WindowPlan(1000, 100, 3)
    again = WindowPlan(1000, 100, 3)
    np.testing.assert_array_equal(plan.blocks(2, 5), again.blocks(2, 5))
    assert plan.blocks(0, 0).tolist() != plan.blocks(1, 0).tolist()
    assert plan.blocks(0, 0).tolist() != WindowPlan(1000, 100, 4).blocks(0, 0).tolist()


def test_the_order_of_blocks_is_no_sampler_s_order() -> None:
    """A sampler seeds its own generator by (seed, epoch, window); trailing zeros must not make the two the same."""
    plan = WindowPlan(50, 50, 0)
    drawn = np.random.default_rng((0, 0, 0)).permutation(50)
    halves = WindowPlan(50, 25, 0)
    assert plan.blocks(0, 0).tolist() == list(range(50))
    assert set(halves.blocks(0, 0).tolist()) != set(drawn[:25].tolist())


@pytest.mark.parametrize(("at", "then"), [((0, 0), (0, 1)), ((0, 3), (1, 0)), ((6, 2), (6, 3))])
def test_after_the_last_window_comes_the_next_epoch(at, then) -> None:
    assert WindowPlan(10, 3, 0).after(*at) == then


def test_blocks_are_mixed_well() -> None:
    """Each window holds blocks from all over the cache: the mean block index is near the middle in every window."""
    plan = WindowPlan(8192, 1024, 0)
    means = [plan.blocks(0, window).mean() for window in range(8)]
    assert np.abs(np.array(means) - 4095.5).max() < 5 * 8192 / np.sqrt(12 * 1024)
