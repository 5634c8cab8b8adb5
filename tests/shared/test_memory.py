"""Blocks of a bounded size."""

from __future__ import annotations

from sparse_pipeline.shared.memory import BLOCK_BYTES, rows_within


def test_a_block_stays_below_its_bound() -> None:
    assert rows_within(4 * 4096, 512) == 512
    assert rows_within(4 * 1_048_576, 512) == 64
    assert BLOCK_BYTES == 4 * 1_048_576 * 64
    assert rows_within(10 * BLOCK_BYTES, 512) == 1
