from __future__ import annotations

import pytest
import torch

from sparse_pipeline.train.kernels import lists, select
from tests.train.kernels.oracles import selected


def fill(codes: select.Selection, rows: list[list[tuple[int, float]]]) -> None:
    """Write a selection as the kernel does: TopK's rows have k places each, BatchTopK's lie close together."""
    counts = [len(row) for row in rows]
    starts = [sum(counts[:b]) if codes.over_batch else b * codes.k for b in range(len(rows))]
    codes.start.copy_(torch.tensor(starts))
    codes.count.copy_(torch.tensor(counts))
    for start, row in zip(starts, rows, strict=True):
        for e, (latent, value) in enumerate(row, start):
            codes.latent[e], codes.value[e] = latent, value


@pytest.mark.parametrize(
    ("rows", "latents", "k", "over_batch"),
    [(5, 37, 3, False), (40, 12, 4, False), (33, 9, 9, False), (20, 6, 3, True)],
)
def test_each_latent_lists_its_rows_in_order(
    device: torch.device, rows: int, latents: int, k: int, over_batch: bool
) -> None:
    codes = select.allocate(rows, n_latents=latents, k=k, dtype=torch.float32, device=device, over_batch=over_batch)
    by_latent = lists.allocate(codes, segment_length=8)
    for _ in range(2):  # the second build finds the first one's leavings
        pre = torch.randn(rows, latents) + torch.linspace(2, -3, latents)  # some latents never fire, some nearly always
        fill(codes, selected(pre, k, over_batch))
        lists.build_lists(codes, by_latent)
        expected: list[list[tuple[int, int, float]]] = [[] for _ in range(latents)]
        latent, value = codes.latent.tolist(), codes.value.tolist()
        for b, (start, count) in enumerate(zip(codes.start.tolist(), codes.count.tolist(), strict=True)):
            for e in range(start, start + count):
                expected[latent[e]].append((b, e, value[e]))
        first = by_latent.first.tolist()
        columns = (by_latent.row.tolist(), by_latent.entry.tolist(), by_latent.code.tolist())
        found = [list(zip(*(c[first[f] : first[f + 1]] for c in columns), strict=True)) for f in range(latents)]
        assert found == expected
        assert by_latent.fired.tolist() == [len(rows_of) for rows_of in expected]
        assert by_latent.segment.diff().tolist() == [len(rows_of) // 8 for rows_of in expected]
