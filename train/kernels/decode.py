"""Nested decode and dL/dz, reading each selected decoder row once.

With prefixes m_1 < … < m_G of the dictionary, codes z and base = b_dec (+ skip) − t, the loss of a row is c·Σ_g ‖e_g‖²,

    e_g = base + Σ_{i < m_g} z_i w_i        (error of prefix g, prediction − target)
    S_g = Σ_{g' ≥ g} e_{g'}                 (suffix sums)
    dL/dz_i = 2c ⟨S_{g(i)}, w_i⟩,   dL/dw_i = 2c z_i S_{g(i)},   dL/db_dec = 2c S_1,

where g(i) is the first prefix that holds i. So nesting costs one suffix sum. Dimensions are independent of one another
up to S: a program takes one row, walks over slices of the width, and in each slice loads the slice of all selected
decoder rows once, for all products with it: Z[G, K] · W[K, slice] and C[G, K] · W[K, slice] give the prefix sums and
their suffix sums, S[G, slice] · Wᵀ accumulates dL/dz. All are small matrix products. Codes are exact in bfloat16, and
C, a code times a small integer, is split into two bfloat16 terms: only sums are rounded, in float32.

A code enters Z in every row g whose prefix holds it, so a group's errors need no walk from one group boundary to the
next: each boundary's error is complete on its own, in any order of the entries.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .select import Selection

MAX_GROUPS = 16
"""Prefixes that fit the smallest matrix product of the tensor cores."""

_ONE_BLOCK = 128
"""Entries of a row that are held at once; rows with more (BatchTopK) are walked in blocks."""


@triton.jit
def _load_entries(latent, value, e, ok):
    return tl.load(latent + e, mask=ok, other=0), tl.load(value + e, mask=ok, other=0.0)


@triton.jit
def _load_rows(w, lat, ok, d, inside, D: tl.constexpr, PRODUCT: tl.constexpr):
    """A slice of the decoder rows of some entries: [K, BLOCK]."""
    at = w + lat[:, None].to(tl.int64) * D + d[None, :]
    return tl.load(at, mask=ok[:, None] & inside[None, :], other=0.0).to(PRODUCT)


@triton.jit
def _error_codes(lat, val, prefix, PRODUCT: tl.constexpr):
    """Z [16, K]: the code where the prefix holds the latent, else 0; Z·W is the prefix sums."""
    return tl.where(lat[None, :] < prefix[:, None], val[None, :], 0.0).to(PRODUCT)


@triton.jit
def _suffix_codes(lat, val, prefix, G: tl.constexpr):
    """C [16, K]: the code times how many of the prefixes ≥ g hold the latent; C·W is their suffix sum.

    Prefixes ascend, so those that hold a latent are the last ones, from `first` = g(i) on; of those ≥ g there are
    G − max(g, first).
    """
    g = tl.arange(0, 16)[:, None]
    holds = (lat[None, :] < prefix[:, None]) & (g < G)
    first = G - tl.sum(holds.to(tl.int32), axis=0)[None, :]
    return tl.where(g < G, val[None, :] * (G - tl.maximum(g, first)).to(tl.float32), 0.0)


@triton.jit
def _pick_group(p, lat, prefix, G: tl.constexpr):
    """p[g(i), i] for each entry i (0 where no prefix holds it): [K] from [16, K].

    g(i) counts the prefixes that end at or before the latent. Where none holds it, that is G, a slot whose S is zero.
    """
    g = tl.arange(0, 16)[:, None]
    first = tl.sum(((lat[None, :] >= prefix[:, None]) & (g < G)).to(tl.int32), axis=0)
    return tl.sum(tl.where(g == first[None, :], p, 0.0), axis=0)


@triton.jit
def _codes(lat, val, prefix, G: tl.constexpr, PRODUCT: tl.constexpr):
    """(Z, high part of C, its low part) of a block of entries: what their decoder rows are multiplied by."""
    z = _error_codes(lat, val, prefix, PRODUCT)
    c_high = z  # with one prefix C is Z, and neither part is read
    c_low = z
    if G > 1:
        c = _suffix_codes(lat, val, prefix, G)
        c_high = c.to(PRODUCT)
        c_low = (c - c_high.to(tl.float32)).to(PRODUCT)
    return z, c_high, c_low


@triton.jit
def _add_products(z, c_high, c_low, w, error, summed, G: tl.constexpr, IS_BF16: tl.constexpr):
    """(error + Z·W, summed + C·W) from one block of decoder rows."""
    error = tl.dot(z, w, error, input_precision="ieee")
    if G > 1:
        summed = tl.dot(c_high, w, summed, input_precision="ieee")
        if IS_BF16:
            summed = tl.dot(c_low, w, summed, input_precision="ieee")
    return error, summed


@triton.jit
def _base(b_dec, target, skip, b, d, inside, D: tl.constexpr, HAS_SKIP: tl.constexpr):
    """b_dec (+ skip) − t of row b: one slice of what every prefix's error starts from."""
    base = tl.load(b_dec + d, mask=inside, other=0.0)
    base -= tl.load(target + b * D + d, mask=inside, other=0.0).to(tl.float32)
    if HAS_SKIP:
        base += tl.load(skip + b * D + d, mask=inside, other=0.0).to(tl.float32)
    return base


@triton.jit
def _add_grad_blocks(
    latent, grad_value, w_dec, e0, n, suffix, prefix, d, inside, first_slice, scale,
    D: tl.constexpr, G: tl.constexpr, K: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Add one slice's share of dL/dz to grad_value, a block of the row's entries after another.

    A row with many entries does not fit in registers, so its dL/dz is summed in memory. The first slice overwrites what
    an earlier step left there: it reads nothing (the mask is empty) and adds to zero.
    """
    k = tl.arange(0, K)
    for j in range(0, n, K):
        e = e0 + j + k
        ok = j + k < n
        lat = tl.load(latent + e, mask=ok, other=0)
        w = _load_rows(w_dec, lat, ok, d, inside, D, PRODUCT)
        part = tl.dot(suffix.to(PRODUCT), tl.trans(w), input_precision="ieee")
        sofar = tl.load(grad_value + e, mask=j + k < tl.where(first_slice, 0, n), other=0.0)
        tl.store(grad_value + e, sofar + scale * _pick_group(part, lat, prefix, G), mask=ok)
    tl.debug_barrier()  # the next slice reads back what this one stored, maybe by another thread


@triton.jit
def _add_extra(grad_value, extra, e0, n, K: tl.constexpr):
    """Add the penalties' part to the dL/dz of a row in memory."""
    k = tl.arange(0, K)
    for j in range(0, n, K):
        e = e0 + j + k
        ok = j + k < n
        out = tl.load(grad_value + e, mask=ok, other=0.0) + tl.load(extra + e, mask=ok, other=0.0)
        tl.store(grad_value + e, out, mask=ok)


# Invariant of the loop over slices: columns before `o` have their suffix sums in memory; `square` holds their squared
# errors, summed per lane, and `grad` (or grad_value) their share of ⟨S_g, w_i⟩ for every prefix g. Only at the end is
# g(i) picked for each entry, because the tensor cores give all 16 for the price of one.
#
# Masked entries have latent 0 and code 0: their decoder rows load as zeros, so they add nothing. Prefix slots at or
# beyond G hold prefix 0, which no latent lies under: their Z is 0, they get no base, and they are never stored.
# A latent at or beyond the last prefix is in no prefix: it gets no error, and dL/dz = 0 from `_pick_group`.
@triton.jit
def _nested_decode(
    latent, value, start, count, w_dec, b_dec, target, skip, prefixes, extra, suffix, grad_value, squares, reach,
    scale, B,
    D: tl.constexpr, G: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_EXTRA: tl.constexpr, PRODUCT: tl.constexpr, IS_BF16: tl.constexpr,
):  # fmt: skip
    """One program per row. `scale` is 2c; `extra` is added to dL/dz."""
    b = tl.program_id(0).to(tl.int64)
    e0 = tl.load(start + b)
    n = tl.load(count + b)
    g = tl.arange(0, 16)
    prefix = tl.load(prefixes + g, mask=g < G, other=0)
    base_in_error = tl.where(g < G, 1.0, 0.0)[:, None]
    base_in_suffix = tl.where(g < G, (G - g).to(tl.float32), 0.0)[:, None]  # S_g sums G − g errors, each with base
    k = tl.arange(0, K)
    square = tl.zeros([16, BLOCK], tl.float32)
    if ONE_BLOCK:
        lat, val = _load_entries(latent, value, e0 + k, k < n)
        z, c_high, c_low = _codes(lat, val, prefix, G, PRODUCT)
        grad = tl.zeros([16, K], tl.float32)
    for o in range(0, D, BLOCK):
        d = o + tl.arange(0, BLOCK)
        inside = d < D
        base = _base(b_dec, target, skip, b, d, inside, D, HAS_SKIP)
        error = base_in_error * base[None, :]
        summed = base_in_suffix * base[None, :]
        if ONE_BLOCK:
            w = _load_rows(w_dec, lat, k < n, d, inside, D, PRODUCT)
            error, summed = _add_products(z, c_high, c_low, w, error, summed, G, IS_BF16)
        else:
            for j in range(0, n, K):
                lat, val = _load_entries(latent, value, e0 + j + k, j + k < n)
                w = _load_rows(w_dec, lat, j + k < n, d, inside, D, PRODUCT)
                z, c_high, c_low = _codes(lat, val, prefix, G, PRODUCT)
                error, summed = _add_products(z, c_high, c_low, w, error, summed, G, IS_BF16)
        square += error * error
        if G == 1:
            summed = error
        rounded = summed.to(suffix.dtype.element_ty)  # dL/dz and dL/dw read the same rounded S
        tl.store(suffix + (g[:, None] * B + b) * D + d[None, :], rounded, mask=(g < G)[:, None] & inside[None, :])
        if ONE_BLOCK:
            grad = tl.dot(rounded.to(PRODUCT), tl.trans(w), grad, input_precision="ieee")
        else:
            _add_grad_blocks(
                latent, grad_value, w_dec, e0, n, rounded, prefix, d, inside, o == 0, scale, D, G, K, PRODUCT
            )
    squared = tl.sum(square, axis=1)
    tl.store(squares + b * G + g, squared, mask=g < G)
    # ‖S_g‖ ≤ Σ_{g' ≥ g} ‖e_g'‖: slots beyond G hold 0, so the reversed running sum starts right.
    tl.store(reach + g * B + b, tl.cumsum(tl.sqrt(squared), axis=0, reverse=True), mask=g < G)
    if ONE_BLOCK:
        out = scale * _pick_group(grad, lat, prefix, G)
        if HAS_EXTRA:
            out += tl.load(extra + e0 + k, mask=k < n, other=0.0)
        tl.store(grad_value + e0 + k, out, mask=k < n)
    elif HAS_EXTRA:
        _add_extra(grad_value, extra, e0, n, K)


def nested_decode(
    codes: Selection,
    *,
    w_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    prefixes: Tensor,
    skip: Tensor | None,
    extra: Tensor | None,
    suffix: Tensor,
    grad_value: Tensor,
    squares: Tensor,
    reach: Tensor,
) -> None:
    """Squared errors of all prefixes, their suffix sums and dL/dz, for L = Σ_g Σ_b ‖e_g‖² / (G·B·d_out).

    Args:
        codes: the selected entries.
        w_dec: [F, d_out] in the compute dtype (float32, or bfloat16: a shadow of the float32 parameter).
        b_dec: [d_out] float32.
        target: [B, d_out].
        prefixes: [G] int32, ascending; latents at or beyond the last take no part. G ≤ MAX_GROUPS.
        skip: [B, d_out] what a skip connection adds, or None.
        extra: [B·k] float32 further terms of dL/dz by entry (penalties on the codes), or None.
        suffix: [G, B, d_out] in the compute dtype: receives S_g, without the factor 2c.
        grad_value: [B·k] float32: receives dL/dz by entry.
        squares: [B, G] float32: receives ‖e_g‖².
        reach: [G, B] float32: receives Σ_{g' ≥ g} ‖e_g'‖, a bound on ‖S_g‖.
    """
    n_groups, n_rows, width = suffix.shape
    if n_groups > MAX_GROUPS:
        raise ValueError(f"at most {MAX_GROUPS} prefixes, not {n_groups}")
    if n_rows == 0:
        return
    one_block = not codes.over_batch and codes.k <= _ONE_BLOCK
    # float32 rows take twice the registers and have no tensor cores: larger tiles spill
    most_k, most_d = (64, 128) if w_dec.dtype == torch.bfloat16 else (32, 32)
    block_k = max(16, triton.next_power_of_2(codes.k)) if one_block else most_k
    block_d = max(16, min(most_d, triton.next_power_of_2(width)))
    product = product_dtype(w_dec.dtype)
    _nested_decode[(n_rows,)](
        codes.latent, codes.value, codes.start, codes.count, w_dec, b_dec, target,
        target if skip is None else skip, prefixes, grad_value if extra is None else extra,
        suffix, grad_value, squares, reach, 2.0 / (n_groups * n_rows * width), n_rows,
        D=width, G=n_groups, K=block_k, BLOCK=block_d, ONE_BLOCK=one_block, HAS_SKIP=skip is not None,
        HAS_EXTRA=extra is not None, PRODUCT=product, IS_BF16=product == tl.bfloat16, num_warps=4,
    )  # fmt: skip


def product_dtype(dtype: torch.dtype) -> tl.dtype:
    """What matrix products multiply in. Triton's interpreter cannot multiply bfloat16; float32 holds it exactly."""
    return tl.float32 if dtype == torch.float32 or interpreted() else tl.bfloat16


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 when this module was imported)."""
    return not isinstance(_nested_decode, triton.JITFunction)
