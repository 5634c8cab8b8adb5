"""The block shuffle, as pure arithmetic: epoch → permuted blocks → windows → rows → batches.

A *block* is a run of consecutive rows inside one shard, the unit of reading. Every epoch permutes all blocks. A
*window* is the next `blocks_per_window` of them, and a sampler draws the window's rows in an order of its own. The
batches cut the endless sequence "rows of window 0, of window 1, …, of epoch 1, …" into equal pieces, so a batch may
span windows and epochs, and a position in it is a few integers.

Nothing here keeps state: the blocks of window w in epoch e follow from (seed, e, w, blocks_per_window) alone. That is
why a resumed run sees the rows of an uninterrupted one, however far either had read ahead, with any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

_BLOCK_STREAM = 0xB10C
"""Keeps the random numbers of the block order apart from a sampler's, which are seeded by (seed, epoch, window)."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a cache that hold at least one wanted row, in the order of their rows.

    Attributes:
        start: [n] first row.
        length: [n] rows; shorter than block_rows only at the end of a shard.
    """

    start: Index
    length: Index

    def __len__(self) -> int:
        return len(self.start)

    @property
    def n_rows(self) -> int:
        return int(self.length.sum())


def make_blocks(n_rows: int, shard_rows: int, block_rows: int, wanted: Mask) -> Blocks:
    """Cuts every shard into blocks and drops those without a wanted row.

    Args:
        n_rows: rows of the cache.
        shard_rows: rows of a shard; a block never crosses a shard's end, so it is one contiguous piece of one file.
        block_rows: rows of a block.
        wanted: [n_rows] rows that training may use.
    """
    # The last shard may be short: blocks that would begin beyond the last row go, the one across it is cut.
    per_shard = np.arange(0, shard_rows, block_rows, dtype=np.int64)
    start = (np.arange(0, n_rows, shard_rows, dtype=np.int64)[:, None] + per_shard).reshape(-1)
    shard_end = np.minimum((start // shard_rows + 1) * shard_rows, n_rows)
    start, shard_end = start[start < n_rows], shard_end[start < n_rows]
    length = np.minimum(block_rows, shard_end - start)
    # The blocks lie end to end over all rows, so reduceat (which runs to the next start) sees each block exactly.
    kept = np.logical_or.reduceat(wanted, start) if len(start) else np.zeros(0, np.bool_)
    return Blocks(start[kept], length[kept])


class StreamPosition(NamedTuple):
    """Where the next batch begins: `offset` drawn rows into a window of an epoch."""

    epoch: int
    window: int
    offset: int


@dataclass(frozen=True)
class WindowPlan:
    """Which blocks make up which window of which epoch.

    Attributes:
        n_blocks: blocks in an epoch.
        blocks_per_window: blocks of a window; the last window of an epoch may have fewer.
        seed: `train.data.seed`.
    """

    n_blocks: int
    blocks_per_window: int
    seed: int

    @property
    def n_windows(self) -> int:
        """Windows in an epoch."""
        return -(-self.n_blocks // self.blocks_per_window)

    def blocks(self, epoch: int, window: int) -> Index:
        """Indices of a window's blocks, ascending.

        The order of the rows within a window is the sampler's business, so neighbouring blocks may be read together.
        """
        start = window * self.blocks_per_window
        return np.sort(_permutation(self.n_blocks, self.seed, epoch)[start : start + self.blocks_per_window])

    def after(self, epoch: int, window: int) -> tuple[int, int]:
        """The window that follows."""
        return (epoch, window + 1) if window + 1 < self.n_windows else (epoch + 1, 0)


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Index:
    order: Index = np.random.default_rng((seed, epoch, 0, _BLOCK_STREAM)).permutation(n)
    order.setflags(write=False)
    return order


def window_rows(blocks: Blocks, chosen: Index) -> Index:
    """The rows of the chosen blocks, block after block."""
    return expand(blocks.start[chosen], blocks.length[chosen])


def expand(start: Index, length: Index) -> Index:
    """Concatenates the ranges [start, start + length).

    Place p of the result lies in range i at p − (ends_i − length_i), so adding start_i − (ends_i − length_i) to each
    place of the range gives its row.
    """
    ends = np.cumsum(length)
    total = int(ends[-1]) if len(ends) else 0
    rows: Index = np.arange(total, dtype=np.int64)
    rows += np.repeat(start - (ends - length), length)
    return rows


def segments(start: Index, length: Index, shard_rows: int, max_blocks: int) -> tuple[Index, Index]:
    """Joins neighbouring blocks of an ascending list into reads of at most `max_blocks` blocks, never across shards."""
    if not len(start):
        return start, length
    shard = start // shard_rows
    joined = (start[1:] == start[:-1] + length[:-1]) & (shard[1:] == shard[:-1])
    begins = np.flatnonzero(np.concatenate(([True], ~joined)))
    # A run of neighbours is cut after every max_blocks of its blocks, counted from its own first one.
    index_in_run = np.arange(len(start)) - np.repeat(begins, np.diff(np.append(begins, len(start))))
    first = np.flatnonzero(index_in_run % max_blocks == 0)
    return start[first], np.add.reduceat(length, first)
