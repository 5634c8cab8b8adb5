"""Sparse encode, decode and nested squared error with gradients that touch only the selected latents.

A batch of B rows with K selected latents each is a sparse matrix S [B, F] with B·K entries. A training step needs three
products with it. Each is one native, parallel call with a fixed summation order, so that a resumed run is bit-identical
to an uninterrupted one:

    S · W            weighted_rows   a row is a bag of K rows of W
    Sᵀ · X           weighted_rows   a latent is a bag of the rows of X that it fired on (bags from LatentLists)
    ⟨x_b, w_i⟩       sampled_dot     only at the entries of S

The dense [B, F] matrix is formed once, to select; it has no part in the gradient. On a CPU that saves all but one
of the large matrix products of a dense step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ONEDNN = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


@torch.no_grad()
def dense_pre(u: Tensor, w_enc: Tensor, b_enc: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """All pre-activations u w_encᵀ + b_enc [B, F], for selection: no gradient.

    Args:
        dtype: multiply in this dtype (and return it); None: as the parameters are.
    """
    if dtype is not None and dtype != w_enc.dtype:
        return F.linear(u.to(dtype), w_enc.to(dtype), b_enc.to(dtype))
    if _ONEDNN and u.device.type == "cpu" and u.dtype == w_enc.dtype == torch.float32:
        # oneDNN uses the widest vectors of every x86 CPU; the BLAS behind F.linear does so on some (2.4x on a Zen 5).
        out: Tensor = torch.ops.mkldnn._linear_pointwise(u.contiguous(), w_enc.contiguous(), b_enc, "none", [], "")
        return out
    return F.linear(u, w_enc, b_enc)


def weighted_rows(weights: Tensor, ids: Tensor, matrix: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    """Bags of rows of `matrix`: out[n] = Σ_{e in bag n} weights[e]·matrix[ids[e]].

    Args:
        weights: [N, K] (bag n is row n), or [E] with `offsets`.
        ids: as `weights`, int64, rows of `matrix`.
        matrix: [M, d].
        offsets: [N] int64: bag n holds entries offsets[n] to offsets[n+1] (the last to the end). Empty bags give 0.

    Returns:
        [N, d].
    """
    return F.embedding_bag(ids, matrix, offsets, per_sample_weights=weights.to(matrix.dtype), mode="sum")


def sampled_dot(x: Tensor, w: Tensor, ids: Tensor) -> Tensor:
    """out[b, j] = ⟨x[b], w[ids[b, j]]⟩ for x [N, d], w [M, d], ids [N, K]: [N, K]."""
    return bag_dot(x, w, ids=ids.reshape(-1), offsets=_row_starts(ids)).view(ids.shape)


def bag_dot(x: Tensor, w: Tensor, *, ids: Tensor, offsets: Tensor) -> Tensor:
    """out[e] = ⟨x[bag of e], w[ids[e]]⟩ for the entries e of bags.

    This is the gradient of `weighted_rows` with respect to its weights, ∂⟨x, Σ_e weights[e]·w[ids[e]]⟩/∂weights[e], so
    the backward kernel of embedding_bag computes it without gathering the [E, d] rows. Their values do not enter.
    """
    weights = torch.zeros(ids.shape, dtype=w.dtype, device=w.device, requires_grad=True)
    with torch.enable_grad():
        out = F.embedding_bag(ids, w.detach(), offsets, per_sample_weights=weights, mode="sum")
    (dots,) = torch.autograd.grad(out, weights, x.to(w.dtype).contiguous())
    return dots


def _row_starts(ids: Tensor) -> Tensor:
    return torch.arange(0, ids.numel(), ids.shape[1], device=ids.device)


class LatentLists:
    """For each latent, the entries of a [B, K] selection that belong to it. Sorted once, on first use, for all
    backward passes."""

    def __init__(self, latents: Tensor, n_latents: int) -> None:
        self._latents = latents
        self._n_latents = n_latents
        self._lists: tuple[Tensor, Tensor] | None = None

    def get(self) -> tuple[Tensor, Tensor]:
        """(order [B·K]: entries grouped by latent, rows ascending; offsets [F]: where each latent's group starts)."""
        if self._lists is None:
            flat = self._latents.reshape(-1)
            order = torch.sort(flat, stable=True).indices
            ends = torch.bincount(flat, minlength=self._n_latents).cumsum(0)
            offsets = torch.zeros_like(ends)
            offsets[1:] = ends[:-1]
            self._lists = (order, offsets)
        return self._lists

    def sum_by_latent(self, weights: Tensor, rows: Tensor, x: Tensor) -> Tensor:
        """out[i] = Σ over the entries e of latent i of weights[e]·x[rows[e]]: [F, d] from weights, rows [B, K]."""
        order, offsets = self.get()
        return weighted_rows(weights.reshape(-1)[order], rows.reshape(-1)[order], x, offsets=offsets)


def _row_ids(latents: Tensor) -> Tensor:
    return torch.arange(latents.shape[0], device=latents.device).unsqueeze(1).expand_as(latents)


class _GatherPre(torch.autograd.Function):
    """Forward: the given values. Backward: the gradient of value[b, j] = ⟨u_b, w_i⟩ + b_i, i = latents[b, j], which is
    w_i for u_b, u_b for w_i and 1 for b_i: a weighted sum of rows of w_enc, of rows of u, and of ones."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, w_enc: Tensor, b_enc: Tensor, latents: Tensor, values: Tensor, lists: LatentLists
    ) -> Tensor:
        ctx.save_for_backward(u, w_enc, latents)
        ctx.lists = lists
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, w_enc, latents = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_u = weighted_rows(grad, latents, w_enc) if ctx.needs_input_grad[0] else None
        grad_w = ctx.lists.sum_by_latent(grad, _row_ids(latents), u) if ctx.needs_input_grad[1] else None
        grad_b = None
        if ctx.needs_input_grad[2]:
            order, offsets = ctx.lists.get()
            grad_b = F.embedding_bag(order, grad.reshape(-1, 1), offsets, mode="sum").squeeze(1)
        return grad_u, grad_w, grad_b, None, None, None


def gather_pre(
    u: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    latents: Tensor,
    *,
    values: Tensor | None = None,
    lists: LatentLists | None = None,
) -> Tensor:
    """Pre-activations ⟨u_b, w_i⟩ + b_i of the selected latents only, with gradients that touch only them.

    Args:
        u: [B, d_in] normalised inputs.
        w_enc: [F, d_in].
        b_enc: [F].
        latents: [B, K] int64.
        values: [B, K] the result, if the selection has already computed it; None recomputes it.
        lists: the LatentLists of `latents`, to share one between calls.

    Returns:
        [B, K]; gradients flow to u, w_enc and b_enc.
    """
    if values is None:
        with torch.no_grad():
            values = sampled_dot(u, w_enc, latents) + b_enc[latents]
    lists = lists or LatentLists(latents, w_enc.shape[0])
    return _GatherPre.apply(u, w_enc, b_enc, latents, values, lists)  # type: ignore[no-any-return, no-untyped-call]


class _SparseDecode(torch.autograd.Function):
    """Forward: S·W. Backward: ⟨grad_b, w_i⟩ for the values and Sᵀ·grad for W, both at the entries of S only."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, latents: Tensor, w_dec: Tensor, lists: LatentLists) -> Tensor:
        ctx.save_for_backward(values, latents, w_dec)
        ctx.lists = lists
        return weighted_rows(values, latents, w_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, latents, w_dec = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_values = sampled_dot(grad, w_dec, latents) if ctx.needs_input_grad[0] else None
        grad_w = ctx.lists.sum_by_latent(values, _row_ids(latents), grad) if ctx.needs_input_grad[2] else None
        return grad_values, None, grad_w, None


def sparse_decode(values: Tensor, latents: Tensor, w_dec: Tensor, lists: LatentLists | None = None) -> Tensor:
    """Σ_j values[b, j]·w_dec[latents[b, j]]: [B, d_out] from values, latents [B, K] and w_dec [F, d_out]."""
    lists = lists or LatentLists(latents, w_dec.shape[0])
    return _SparseDecode.apply(values, latents, w_dec, lists)  # type: ignore[no-any-return, no-untyped-call]


class _NestedSquaredError(torch.autograd.Function):
    """Forward: entry e of a row belongs to the first prefix g(e) that contains its latent, and enters the errors of all
    prefixes from there on. So each (row, group) bag is decoded once, and a running sum over groups gives all errors.
    Backward: by the same token the gradient of an entry is the suffix sum over g ≥ g(e) of 2 c_g error_g, where c_g is
    the gradient of square g."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        latents: Tensor,
        w_dec: Tensor,
        base: Tensor,
        prefixes: tuple[int, ...],
        lists: LatentLists,
        total: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        n_rows, n_groups = values.shape[0], len(prefixes)
        bounds = torch.tensor(prefixes[:-1], device=values.device, dtype=latents.dtype)
        group = torch.bucketize(latents, bounds, right=True)  # [B, K]: the first prefix that contains the entry
        bags = _row_ids(latents) * n_groups + group  # [B, K]: each (row, group) pair is one bag
        # embedding_bag needs the entries of a bag side by side: sort each row by group (stable: a fixed order of sums)
        by_group = torch.sort(group, dim=1, stable=True).indices if n_groups > 1 else None
        ids = (latents if by_group is None else latents.gather(1, by_group)).reshape(-1)
        weights = (values if by_group is None else values.gather(1, by_group)).reshape(-1)
        sizes = torch.bincount(bags.reshape(-1), minlength=n_rows * n_groups)
        offsets = sizes.cumsum(0) - sizes
        errors = weighted_rows(weights, ids, w_dec, offsets=offsets).view(n_rows, n_groups, -1)
        if total is not None:
            errors = total(errors)
        errors[:, 0] += base
        for g in range(1, n_groups):
            errors[:, g] += errors[:, g - 1]
        squares = torch.stack([errors[:, g].square().sum() for g in range(n_groups)])
        last = errors[:, -1].clone()
        ctx.save_for_backward(values, w_dec, errors, bags, ids, offsets, by_group)
        ctx.lists = lists
        ctx.mark_non_differentiable(last)
        return squares, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, w_dec, errors, bags, ids, offsets, by_group = ctx.saved_tensors
        n_rows, n_groups, width = errors.shape
        # d loss / d (contribution of group j) = Σ_{g ≥ j} 2 c_g e_g: one suffix sum serves every gradient below.
        suffix = errors * (2 * grads[0]).view(1, n_groups, 1)
        for g in range(n_groups - 2, -1, -1):
            suffix[:, g] += suffix[:, g + 1]
        by_bag = suffix.view(n_rows * n_groups, width)
        grad_values = grad_w = grad_base = None
        if ctx.needs_input_grad[0]:
            dots = bag_dot(by_bag, w_dec, ids=ids, offsets=offsets).view(values.shape)
            grad_values = dots if by_group is None else torch.empty_like(dots).scatter_(1, by_group, dots)
        if ctx.needs_input_grad[2]:
            grad_w = ctx.lists.sum_by_latent(values, bags, by_bag)
        if ctx.needs_input_grad[3]:
            grad_base = suffix[:, 0].contiguous()
        return grad_values, None, grad_w, grad_base, None, None, None


def nested_squared_error(
    values: Tensor,
    latents: Tensor,
    w_dec: Tensor,
    *,
    base: Tensor,
    prefixes: tuple[int, ...],
    lists: LatentLists | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared errors of the nested reconstructions, Σ_b ‖base_b + Σ_{i < m_g} z_bi w_i‖² for each prefix m_g.

    The loss of Matryoshka SAEs (arXiv 2503.17547). Prefix errors are accumulated once, and the gradient of a latent of
    group j is the suffix sum Σ_{g ≥ j} of the prefix errors: nesting costs one running sum each way and no further
    decode.

    Args:
        values, latents: [B, K] codes.
        w_dec: [F, d_out].
        base: [B, d_out] the term shared by all prefixes: bias (+ skip) − target.
        prefixes: cumulative group sizes, the last one F. `(F,)` is the plain squared error.
        total: where the latents are those of one process, which counts them (and the prefixes) from its first: adds up
            the groups' sums [B, G, d_out] of all processes.

    Returns:
        (squares [G] differentiable, error [B, d_out] of the full reconstruction ŷ − y, detached).
    """
    lists = lists or LatentLists(latents, w_dec.shape[0])
    squares, error = _NestedSquaredError.apply(values, latents, w_dec, base, prefixes, lists, total)  # type: ignore[no-untyped-call]
    return squares, error
