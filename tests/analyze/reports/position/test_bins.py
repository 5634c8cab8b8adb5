"""Bins of positions against the closed form."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_pipeline.analyze.reports.position.bins import coarse_bins, profile_bins


@pytest.mark.parametrize("ctx", [2, 5, 11, 64, 1021, 5000])
def test_position_bins_are_nested(ctx: int) -> None:
    profile = profile_bins(ctx)
    coarse = coarse_bins(int(profile[-1]) + 1, 10)[profile]
    assert (profile[0], coarse[0]) == (0, 0)
    assert (coarse[1:] >= 1).all()
    assert coarse[-1] == min(10, ctx - 1)
    if ctx - 1 >= 10:
        np.testing.assert_array_equal(coarse[1:], np.arange(ctx - 1) * 10 // (ctx - 1) + 1)
