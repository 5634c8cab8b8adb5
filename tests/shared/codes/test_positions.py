"""Position bins in NumPy and in torch, against the closed form and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.codes.positions import bin_edges, position_bins


@pytest.mark.parametrize(("ctx", "bins"), [(1, 1), (2, 10), (4, 10), (11, 10), (64, 10), (5000, 1020), (9, 1)])
def test_bins_are_equal_parts_of_the_positions_after_0(ctx: int, bins: int) -> None:
    found = position_bins(np.arange(ctx), ctx, bins)
    assert found.tolist() == [0, *(1 + (p - 1) * bins // (ctx - 1) for p in range(1, ctx))]
    assert position_bins(torch.arange(ctx), ctx, bins).tolist() == found.tolist()
    if ctx > 1:
        edges = np.array(bin_edges(ctx, bins))
        assert len(edges) == bins + 2
        p = np.arange(1, ctx)
        assert ((edges[found[1:]] <= p + 1e-9) & (p < edges[found[1:] + 1])).all()


def test_by_hand() -> None:
    assert position_bins(torch.arange(64), 64, 10).bincount().tolist() == [1, 7, 6, 6, 7, 6, 6, 7, 6, 6, 6]
    assert position_bins(torch.arange(4), 4, 10).tolist() == [0, 1, 4, 7]
