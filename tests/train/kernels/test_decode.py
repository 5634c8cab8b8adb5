from __future__ import annotations

import pytest
import torch

from sparse_pipeline.train.kernels import decode, select
from tests.train.kernels.oracles import dense, relative

CASES = [
    # rows, latents, k, width, groups, over the batch
    (5, 37, 3, 20, [37], False),
    (4, 70, 16, 130, [10, 20, 40], False),
    (3, 300, 140, 24, [100, 200], False),  # more than one block of entries per row
    (5, 64, 7, 33, [8, 16, 32, 4, 4], True),
    (3, 200, 70, 40, [50, 50, 50, 50], True),
]


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "skip+extra"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "latents", "k", "width", "groups", "over_batch"), CASES)
def test_errors_and_gradients_of_float64_autograd(
    device: torch.device,
    rows: int,
    latents: int,
    k: int,
    width: int,
    groups: list[int],
    over_batch: bool,
    dtype: torch.dtype,
    extras: bool,
) -> None:
    pre = torch.randn(rows, latents)
    if over_batch:
        pre[0] *= 4  # one row takes far more than its share, another perhaps nothing
        pre[1] -= 3
    codes = select.allocate(rows, n_latents=latents, k=k, dtype=dtype, device=device, over_batch=over_batch)
    select.select(pre.to(device, dtype), codes)
    w_dec, b_dec, target = torch.randn(latents, width).to(dtype), torch.randn(width), torch.randn(rows, width)
    skip = torch.randn(rows, width).to(dtype) if extras else None
    extra = torch.randn(rows * k) if extras else None
    prefixes = torch.tensor(groups).cumsum(0).to(torch.int32)
    n = len(groups)
    nan = float("nan")
    suffix = torch.full((n, rows, width), nan, dtype=dtype, device=device)
    grad_value = torch.full((rows * k,), nan, device=device)
    squares, reach = torch.full((rows, n), nan, device=device), torch.full((n, rows), nan, device=device)
    decode.nested_decode(
        codes, w_dec=w_dec.to(device), b_dec=b_dec.to(device), target=target.to(device), prefixes=prefixes.to(device),
        skip=None if skip is None else skip.to(device), extra=None if extra is None else extra.to(device),
        suffix=suffix, grad_value=grad_value, squares=squares, reach=reach,
    )  # fmt: skip

    z = dense(codes, codes.value).requires_grad_()
    base = b_dec.double() - target.double() + (0 if skip is None else skip.double())
    errors = torch.stack([base + z[:, :m] @ w_dec[:m].double() for m in prefixes.tolist()])
    (errors.square().sum() / (n * rows * width)).backward()
    assert z.grad is not None
    active = z > 0
    expected = torch.where(active, z.grad + (0 if extra is None else dense(codes, extra)), 0.0)
    suffixes = errors.flip(0).cumsum(0).flip(0)
    # Sums are float32. The suffix errors are stored in the compute dtype (the interpreter truncates, devices round).
    exact, stored = 1e-6, 1e-6 if dtype == torch.float32 else 6e-3
    assert relative(squares, errors.square().sum(dim=2).T) < exact
    assert relative(suffix, suffixes) < stored
    assert relative(dense(codes, grad_value), expected) < stored
    assert (reach.cpu().double() >= suffixes.norm(dim=2) * (1 - 1e-5)).all()


def test_latents_beyond_the_last_prefix_take_no_part(device: torch.device) -> None:
    codes = select.allocate(2, n_latents=20, k=20, dtype=torch.float32, device=device, over_batch=False)
    select.select(torch.rand(2, 20, device=device) + 0.1, codes)
    suffix, grad_value = torch.zeros(2, 2, 8, device=device), torch.zeros(40, device=device)
    squares, reach = torch.zeros(2, 2, device=device), torch.zeros(2, 2, device=device)
    w_dec = torch.randn(20, 8)
    decode.nested_decode(
        codes, w_dec=w_dec.to(device), b_dec=torch.zeros(8, device=device), target=torch.zeros(2, 8, device=device),
        prefixes=torch.tensor([4, 12], dtype=torch.int32, device=device),
        skip=None, extra=None, suffix=suffix, grad_value=grad_value, squares=squares, reach=reach,
    )  # fmt: skip
    z = dense(codes, codes.value)
    assert relative(squares[:, 1], (z[:, :12] @ w_dec[:12].double()).square().sum(dim=1)) < 1e-6
    assert not dense(codes, grad_value)[:, 12:].any()


def test_too_many_groups(device: torch.device) -> None:
    codes = select.allocate(1, n_latents=20, k=2, dtype=torch.float32, device=device, over_batch=False)
    with pytest.raises(ValueError, match="at most 16 prefixes, not 17"):
        decode.nested_decode(
            codes, w_dec=torch.zeros(20, 4), b_dec=torch.zeros(4), target=torch.zeros(1, 4),
            prefixes=torch.zeros(17, dtype=torch.int32),
            skip=None, extra=None, suffix=torch.zeros(17, 1, 4), grad_value=torch.zeros(2),
            squares=torch.zeros(1, 17), reach=torch.zeros(17, 1),
        )  # fmt: skip
