"""Position bins in NumPy and in torch, against the closed form and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.shared.codes.positions import bin_edges, bos_enrichment, position_bins


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


def test_enrichment_is_a_ratio_of_means_and_none_where_there_is_none() -> None:
    z = torch.tensor([[3.0, 1.0], [0.5, 0.0], [0.0, 1.5], [2.0, 0.0]])
    position = torch.tensor([0, 1, 2, 0])
    assert bos_enrichment(Codes(z, None, 2), position) == pytest.approx(3.0 / 1.0)
    assert bos_enrichment(Codes(z, None, 2), torch.ones(4)) is None, "no row at position 0"
    assert bos_enrichment(Codes(z, None, 2), torch.zeros(4)) is None, "no other row"
    assert bos_enrichment(Codes(z * (position == 0)[:, None], None, 2), position) is None, "the others are silent"
