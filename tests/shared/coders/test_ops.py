"""Each sparse product against dense float64 autograd and against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.coders.ops import (
    LatentLists,
    dense_pre,
    gather_pre,
    nested_squared_error,
    sampled_dot,
    sparse_decode,
    weighted_rows,
)


def problem(
    rows: int = 7, d_in: int = 5, d_out: int = 3, latents: int = 11, k: int = 4, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    ids = torch.stack([torch.randperm(latents, generator=g)[:k] for _ in range(rows)])
    return {
        "u": draw(rows, d_in),
        "w_enc": draw(latents, d_in),
        "b_enc": draw(latents),
        "w_dec": draw(latents, d_out),
        "base": draw(rows, d_out),
        "values": draw(rows, k).abs(),
        "latents": ids,
    }


def dense(values: Tensor, latents: Tensor, n: int) -> Tensor:
    return values.new_zeros(values.shape[0], n).scatter(1, latents, values)


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def test_weighted_rows_with_and_without_offsets() -> None:
    p = problem()
    expected = dense(p["values"], p["latents"], 11).numpy() @ p["w_dec"].numpy()
    np.testing.assert_allclose(weighted_rows(p["values"], p["latents"], p["w_dec"]), expected, rtol=1e-12)
    offsets = torch.tensor([0, 0, 5, 28])  # an empty bag first and last
    bags = weighted_rows(p["values"].flatten(), p["latents"].flatten(), p["w_dec"], offsets=offsets)
    rows = p["values"].flatten()[:, None] * p["w_dec"][p["latents"].flatten()]
    torch.testing.assert_close(
        bags, torch.stack([rows[:0].sum(0), rows[:5].sum(0), rows[5:28].sum(0), rows[28:].sum(0)])
    )


def test_sampled_dot_is_the_dense_product_at_the_entries() -> None:
    p = problem()
    out = sampled_dot(p["u"], p["w_enc"], p["latents"])
    torch.testing.assert_close(out, (p["u"] @ p["w_enc"].T).gather(1, p["latents"]))


@pytest.mark.parametrize("shape", [(1, 1), (33, 7), (64, 16)])
def test_dense_pre_in_float32_is_within_rounding_of_float64(shape: tuple[int, int]) -> None:
    p = problem(rows=shape[0], d_in=shape[1], dtype=torch.float32)
    exact = p["u"].double() @ p["w_enc"].double().T + p["b_enc"].double()
    torch.testing.assert_close(dense_pre(p["u"], p["w_enc"], p["b_enc"]).double(), exact, rtol=1e-5, atol=1e-5)
    low = dense_pre(p["u"], p["w_enc"], p["b_enc"], torch.bfloat16)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), exact, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(("rows", "latents", "k"), [(7, 11, 4), (1, 5, 5), (6, 3, 1), (13, 4, 2)])
def test_gather_pre_gradients_equal_dense_autograd(rows: int, latents: int, k: int) -> None:
    p = problem(rows=rows, latents=latents, k=k)
    leaves = [p[name].requires_grad_() for name in ("u", "w_enc", "b_enc")]
    weight = torch.randn(rows, k, dtype=torch.float64)
    sparse = gather_pre(*leaves, p["latents"])
    full = (p["u"] @ p["w_enc"].T + p["b_enc"]).gather(1, p["latents"])
    torch.testing.assert_close(sparse, full)
    for ours, theirs in zip(
        gradients((sparse * weight).sum(), *leaves), gradients((full * weight).sum(), *leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gather_pre_gradcheck() -> None:
    p = problem()
    leaves = tuple(p[name].requires_grad_() for name in ("u", "w_enc", "b_enc"))
    assert torch.autograd.gradcheck(lambda u, w, b: gather_pre(u, w, b, p["latents"]), leaves)


def test_gather_pre_returns_the_given_values_unchanged() -> None:
    p = problem()
    given = torch.randn_like(p["values"])
    assert torch.equal(gather_pre(p["u"], p["w_enc"], p["b_enc"], p["latents"], values=given), given)


@pytest.mark.parametrize(("rows", "latents", "k"), [(7, 11, 4), (1, 5, 5), (6, 3, 1), (13, 4, 2)])
def test_sparse_decode_gradients_equal_dense_autograd(rows: int, latents: int, k: int) -> None:
    p = problem(rows=rows, latents=latents, k=k)
    leaves = [p[name].requires_grad_() for name in ("values", "w_dec")]
    weight = torch.randn(rows, 3, dtype=torch.float64)
    sparse = sparse_decode(p["values"], p["latents"], p["w_dec"])
    full = dense(p["values"], p["latents"], latents) @ p["w_dec"]
    torch.testing.assert_close(sparse, full)
    for ours, theirs in zip(
        gradients((sparse * weight).sum(), *leaves), gradients((full * weight).sum(), *leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_sparse_decode_gradcheck() -> None:
    p = problem()
    leaves = (p["values"].requires_grad_(), p["w_dec"].requires_grad_())
    assert torch.autograd.gradcheck(lambda z, w: sparse_decode(z, p["latents"], w), leaves)


PREFIXES = [(11,), (3, 11), (1, 2, 7, 11), (2, 5, 5, 11)]


@pytest.mark.parametrize("prefixes", PREFIXES)
def test_nested_squared_error_equals_a_literal_numpy_loop(prefixes: tuple[int, ...]) -> None:
    p = problem()
    squares, error = nested_squared_error(p["values"], p["latents"], p["w_dec"], base=p["base"], prefixes=prefixes)
    z, w, base = dense(p["values"], p["latents"], 11).numpy(), p["w_dec"].numpy(), p["base"].numpy()
    for g, prefix in enumerate(prefixes):
        expected = 0.0
        for b in range(z.shape[0]):
            residual = base[b].copy()
            for i in range(prefix):
                residual += z[b, i] * w[i]
            expected += float((residual**2).sum())
        assert squares[g].item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(error, z @ w + base, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prefixes", PREFIXES)
def test_nested_squared_error_gradients_equal_dense_autograd(prefixes: tuple[int, ...]) -> None:
    p = problem()
    leaves = [p[name].requires_grad_() for name in ("values", "w_dec", "base")]
    weight = torch.arange(1, len(prefixes) + 1, dtype=torch.float64)  # prefixes need not weigh alike
    squares, _ = nested_squared_error(p["values"], p["latents"], p["w_dec"], base=p["base"], prefixes=prefixes)
    z = dense(p["values"], p["latents"], 11)
    full = torch.stack([(z[:, :m] @ p["w_dec"][:m] + p["base"]).square().sum() for m in prefixes])
    for ours, theirs in zip(
        gradients((squares * weight).sum(), *leaves), gradients((full * weight).sum(), *leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("prefixes", PREFIXES)
def test_nested_squared_error_gradcheck(prefixes: tuple[int, ...]) -> None:
    p = problem(rows=3)
    leaves = tuple(p[name].requires_grad_() for name in ("values", "w_dec", "base"))
    assert torch.autograd.gradcheck(
        lambda z, w, base: nested_squared_error(z, p["latents"], w, base=base, prefixes=prefixes)[0], leaves
    )


def test_the_error_it_returns_carries_no_gradient() -> None:
    p = problem()
    values = p["values"].requires_grad_()
    _, error = nested_squared_error(values, p["latents"], p["w_dec"], base=p["base"], prefixes=(3, 11))
    assert not error.requires_grad


def test_a_frozen_decoder_gets_no_gradient() -> None:
    p = problem()
    values = p["values"].requires_grad_()
    squares, _ = nested_squared_error(values, p["latents"], p["w_dec"], base=p["base"], prefixes=(11,))
    squares.sum().backward()
    assert values.grad is not None
    assert p["w_dec"].grad is None


def test_latent_lists_group_entries_by_latent_rows_ascending() -> None:
    latents = torch.tensor([[4, 1], [1, 0], [4, 3]])
    order, offsets = LatentLists(latents, 6).get()
    groups = [order[a:b].tolist() for a, b in zip(offsets.tolist(), [*offsets[1:].tolist(), 6], strict=True)]
    assert groups == [[3], [1, 2], [], [5], [0, 4], []]


def test_one_and_two_threads_give_the_same_bits() -> None:
    p = problem(rows=257, d_in=33, d_out=17, latents=301, k=9, dtype=torch.float32)

    def run() -> list[Tensor]:
        leaves = [p[name].detach().clone().requires_grad_() for name in ("u", "w_enc", "b_enc", "w_dec")]
        u, w_enc, b_enc, w_dec = leaves
        values = torch.relu(gather_pre(u, w_enc, b_enc, p["latents"]))
        squares, _ = nested_squared_error(values, p["latents"], w_dec, base=p["base"], prefixes=(40, 100, 301))
        return gradients(squares.mean(), w_enc, b_enc, w_dec)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(2)
        two = run()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
