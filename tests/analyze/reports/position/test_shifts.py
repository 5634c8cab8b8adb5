"""Circular shifts against all rotations of a sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparse_pipeline.analyze.reports.position.bins import coarse_bins
from sparse_pipeline.analyze.reports.position.config import EXCLUDED
from sparse_pipeline.analyze.reports.position.shifts import shift_slots
from sparse_pipeline.analyze.stream.batches import shard_rows
from sparse_pipeline.shared.cache.heldout import split_rows
from tests.analyze.planted import planted


@pytest.mark.parametrize(("packing", "skip"), [("concat", 1), ("apart", 1), ("apart", 0)])
def test_rotation_skips_rows_that_do_not_count(packing: str, skip: int, tmp_path: Path) -> None:
    """Every replicate turns the bins of the rows that count, in their order, by one amount for each sequence."""
    made = planted(tmp_path / "cache", packing=packing)
    only = split_rows(made.cache, 0.3).heldout
    rows = shard_rows(made.cache, 0, only)
    ctx, shifts = rows.ctx, 5
    to_bin = coarse_bins(ctx, 10)
    slots = shift_slots(rows, shifts=shifts, skip=skip, to_bin=to_bin, n_bins=11 - skip, rng=np.random.default_rng(0))
    slots = slots.reshape(-1, ctx, shifts)
    kept, position = rows.keep.reshape(-1, ctx), made.position[: len(rows)].reshape(-1, ctx)
    turned = 0
    for sequence, inside, at in zip(slots, kept, position, strict=True):
        places = [p for p in range(ctx) if inside[p] and at[p] >= skip]
        own = to_bin[at[places]] - skip
        assert (np.delete(sequence, places, axis=0) == EXCLUDED).all()
        for s in range(shifts):
            found = sequence[places, s].astype(int) - s * (11 - skip)
            options = [np.roll(own, -k).tolist() for k in range(len(own))] or [[]]
            assert found.tolist() in options
            turned += found.tolist() != own.tolist()
    assert turned > 10
