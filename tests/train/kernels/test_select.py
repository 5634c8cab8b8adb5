from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparse_pipeline.train.kernels import select
from tests.train.kernels.oracles import entries, selected


def ties(rows: int, latents: int) -> Tensor:
    return torch.randint(-3, 4, (rows, latents)).float()


def nearly_all_negative(rows: int, latents: int) -> Tensor:
    values = torch.randn(rows, latents)
    return torch.where(torch.rand(rows, latents) < 0.03, values.abs(), -values.abs())


def uneven_rows(rows: int, latents: int) -> Tensor:
    return torch.randn(rows, latents) * torch.logspace(-3, 3, rows).unsqueeze(1)


def bunched(rows: int, latents: int) -> Tensor:
    """All large values share one slot of the slice maxima, so that the first bound is far too low."""
    values = torch.rand(rows, latents) * 0.01
    values[:, ::256] += 1
    return values


KINDS: list[Callable[[int, int], Tensor]] = [
    torch.randn,
    ties,
    nearly_all_negative,
    uneven_rows,
    bunched,
    torch.ones,
    lambda rows, latents: -torch.rand(rows, latents),
    lambda rows, latents: torch.randn(1, latents).repeat(rows, 1),  # duplicate rows
]


@pytest.mark.parametrize("over_batch", [False, True], ids=["topk", "batchtopk"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("rows", "latents", "k"), [(3, 37, 3), (2, 1100, 9), (2, 64, 64)])
def test_the_selection_of_a_stable_sort(
    device: torch.device, rows: int, latents: int, k: int, dtype: torch.dtype, over_batch: bool
) -> None:
    into = select.allocate(rows, n_latents=latents, k=k, dtype=dtype, device=device, over_batch=over_batch)
    for kind in KINDS:
        pre = kind(rows, latents).to(dtype)
        select.select(pre.to(device), into)
        expected = selected(pre, k, over_batch)
        assert entries(into) == expected
        if not over_batch:  # unused places read as inactive
            assert (into.value.view(rows, k) > 0).sum(dim=1).tolist() == [len(row) for row in expected]


def test_smallest_value_of_a_batch(device: torch.device) -> None:
    pre = torch.randn(6, 50)
    for dtype in (torch.bfloat16, torch.float32):
        into = select.allocate(6, n_latents=50, k=4, dtype=dtype, device=device, over_batch=True)
        select.select(pre.to(device, dtype), into)
        assert into.smallest_value().item() == min(v for row in selected(pre.to(dtype), 4, True) for _, v in row)
        select.select(-pre.abs().to(device, dtype), into)
        assert into.smallest_value().item() == float("inf")
        assert into.count.sum().item() == 0


def test_refuses_what_it_was_not_made_for(device: torch.device) -> None:
    into = select.allocate(4, n_latents=32, k=3, dtype=torch.float32, device=device, over_batch=False)
    with pytest.raises(ValueError, match=r"pre-activations \(4, 31\)"):
        select.select(torch.zeros(4, 31, device=device), into)
    with pytest.raises(ValueError, match="contiguous"):
        select.select(torch.zeros(32, 4, device=device).T, into)
    with pytest.raises(ValueError, match="bfloat16 or float32"):
        select.allocate(4, n_latents=32, k=3, dtype=torch.float16, device=device, over_batch=False)
