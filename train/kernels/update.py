"""Gradients of both matrices, row by row, consumed at once: clip, project, Adam, renormalise, shadow.

A program owns one latent's row of one matrix. It sums the row's gradient from the latent's list,

    dL/dw_enc_f = Σ_b dL/dz_bf u_b          dL/dw_dec_f = 2c Σ_b z_bf S_{g(f), b}

and, still in registers, scales it (global-norm clipping), removes the part along a unit decoder row, updates Adam's
moments and the row, brings the row back to unit length and writes its copy in the compute dtype. No gradient matrix is
written.

Clipping needs the global norm before the first row may move. The triangle inequality bounds it from the lists alone,
Σ_b |dL/dz_bf| ‖u_b‖ and 2c Σ_b z_bf Σ_g ‖e_g‖, plus the norm of what penalties and AuxK add. Where that stays under the
limit, nothing is clipped and no norm is computed. Otherwise (or when the norm is requested) the gradients are summed
once more, for the norm. Which of the two happens is decided on the device: the host never waits.

A step whose gradient is not finite moves nothing, and neither do the steps after it, until `reset`.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .lists import LatentLists

# Places in the float32 state vector of a step.
EXACT = tl.constexpr(0)  # 1: the exact norm is computed
FACTOR = tl.constexpr(1)  # what the gradient is multiplied by
NORM = tl.constexpr(2)  # the exact norm; NaN where it was not computed
FINITE = tl.constexpr(3)  # 1 until a gradient was not finite
BOUND = tl.constexpr(4)  # the bound on the norm
STATE_SIZE = 5

# Places in the float32 vector of Adam's numbers, which change from step to step.
STEP_SIZE = tl.constexpr(0)  # lr / (1 − β1^t)
ROOT_SCALE = tl.constexpr(1)  # 1 / √(1 − β2^t)
BETA1 = tl.constexpr(2)
BETA2 = tl.constexpr(3)
ONE_MINUS_BETA1 = tl.constexpr(4)  # from the host: 1 − 0.999 in float32 is off by 1e-5
ONE_MINUS_BETA2 = tl.constexpr(5)
EPS = tl.constexpr(6)
CLIP = tl.constexpr(7)  # inf: no clipping
WANTED = tl.constexpr(8)  # 1: the exact norm was requested
HYPER_SIZE = 9

_SLACK = 1.01
"""Sums are rounded; a bound this close to the limit counts as above it."""


@triton.jit
def _adam(g, w, m, v, hyper):
    """Adam's update (arXiv 1412.6980, algorithm 1): new (w, m, v)."""
    m = tl.load(hyper + BETA1) * m + tl.load(hyper + ONE_MINUS_BETA1) * g
    v = tl.load(hyper + BETA2) * v + tl.load(hyper + ONE_MINUS_BETA2) * g * g
    w -= tl.load(hyper + STEP_SIZE) * m / (tl.sqrt(v) * tl.load(hyper + ROOT_SCALE) + tl.load(hyper + EPS))
    return w, m, v


@triton.jit
def _gather(row, weight, table, low, high, d, D: tl.constexpr, UNROLL: tl.constexpr):
    """Σ over list places low … high − 1 of weight · table[row]: one slice of a row.

    Always in list order, rows ascending, whatever runs beside it: the sum is bit-identical on every run. Places at or
    beyond `high` load row 0 with weight 0 and read nothing of the table (the mask d < 0 is empty).
    """
    total = tl.zeros(d.shape, tl.float32)
    for p in range(low, high, UNROLL):
        for i in tl.static_range(UNROLL):  # several rows in flight
            ok = p + i < high
            b = tl.load(row + p + i, mask=ok, other=0).to(tl.int64)
            c = tl.load(weight + p + i, mask=ok, other=0.0)
            total += c * tl.load(table + b * D + d, mask=d < tl.where(ok, D, 0), other=0.0).to(tl.float32)
    return total


@triton.jit
def _gather_both(row, weight, table, low, high, d, d2, D: tl.constexpr, UNROLL: tl.constexpr):
    """As _gather, of two slices on one walk over the list: each place's row and weight are read once for both."""
    total = tl.zeros(d.shape, tl.float32)
    total2 = tl.zeros(d2.shape, tl.float32)
    for p in range(low, high, UNROLL):
        for i in tl.static_range(UNROLL):
            ok = p + i < high
            b = tl.load(row + p + i, mask=ok, other=0).to(tl.int64)
            c = tl.load(weight + p + i, mask=ok, other=0.0)
            width = tl.where(ok, D, 0)
            total += c * tl.load(table + b * D + d, mask=d < width, other=0.0).to(tl.float32)
            total2 += c * tl.load(table + b * D + d2, mask=d2 < width, other=0.0).to(tl.float32)
    return total, total2


@triton.jit
def _group_table(table, prefixes, f, B, D: tl.constexpr, G: tl.constexpr):
    """The suffix errors that latent f's gradient is summed from, and whether any prefix holds f.

    g(f) counts the prefixes that end at or before f. Where none holds f the pointer stays in range, at the last table,
    and the caller reads nothing.
    """
    g = 0
    for i in tl.static_range(G):
        g += (tl.load(prefixes + i) <= f).to(tl.int32)
    return table + tl.minimum(g, G - 1).to(tl.int64) * B * D, g < G


@triton.jit
def _segment_rows(
    row, weight, first, segment, table, prefixes, partial, F, B,
    D: tl.constexpr, G: tl.constexpr, STEPS: tl.constexpr, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Sums of the segments of long lists, into partial [segments, D]; one program per (segment, slice).

    The grid is as large as there can be segments; programs beyond those of this batch end at once. Invariant of the
    binary search: segment[low] ≤ s < segment[high]. Latents without a segment repeat their successor's begin, so the
    last one that begins at or before s owns it.
    """
    s = tl.program_id(0)
    if s < tl.load(segment + F):
        low = 0  # the last latent whose segments begin at or before s
        high = F
        for _ in range(STEPS):
            middle = (low + high) // 2
            begins = tl.load(segment + middle) <= s
            low = tl.where(begins, middle, low)
            high = tl.where(begins, high, middle)
        own, held = _group_table(table, prefixes, low, B, D, G)
        p = tl.load(first + low) + (s - tl.load(segment + low)) * LENGTH
        d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = _gather(row, weight, own, p, tl.where(held, p + LENGTH, p), d, D, UNROLL)
        tl.store(partial + s.to(tl.int64) * D + d, total, mask=d < D)


@triton.jit
def _bound_rows(
    row, entry, code, grad_value, list_grad, first, input_norm, reach, prefixes, bound, scale, B,
    G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Squared bound on the norm of a latent's gradients; brings dL/dz into list order. One program per latent.

    ‖Σ_b g_b u_b‖ ≤ Σ_b |g_b| ‖u_b‖, and the same for the decoder with ‖S_{g(f), b}‖ ≤ reach. It reads a few numbers per
    entry where the exact norm reads whole rows. The projection of a unit row only shortens its gradient.
    """
    f = tl.program_id(0)
    low = tl.load(first + f)
    high = tl.load(first + f + 1)
    own, held = _group_table(reach, prefixes, f, B, 1, G)
    encoder = tl.zeros([BLOCK], tl.float32)
    bias = tl.zeros([BLOCK], tl.float32)
    decoder = tl.zeros([BLOCK], tl.float32)
    for p in range(low, high, BLOCK):
        i = p + tl.arange(0, BLOCK)
        ok = i < high
        b = tl.load(row + i, mask=ok, other=0)
        g = tl.load(grad_value + tl.load(entry + i, mask=ok, other=0), mask=ok, other=0.0)
        tl.store(list_grad + i, g, mask=ok)
        bias += tl.abs(g)
        encoder += tl.abs(g) * tl.load(input_norm + b, mask=ok, other=0.0)
        decoder += tl.load(code + i, mask=ok, other=0.0) * tl.load(own + b, mask=i < tl.where(held, high, 0), other=0.0)
    e = tl.sum(encoder)
    o = tl.sum(bias)
    d = tl.sum(decoder) * scale
    tl.store(bound + f, e * e + o * o + d * d)


@triton.jit
def _decide(bound, others, extra, state, hyper, N, SLACK: tl.constexpr, BLOCK: tl.constexpr):
    """Whether the exact norm is needed. One program.

    The bound covers every gradient, those that the lists do not hold too (`extra`, the squared norm of penalties' and
    AuxK's: ‖a + b‖ ≤ ‖a‖ + ‖b‖). So bound ≤ CLIP proves norm ≤ CLIP: no clipping. A bound that is not finite (NaN fails
    `<` too) clears FINITE for good.
    """
    total = tl.zeros([BLOCK], tl.float32)
    for o in range(0, N, BLOCK):
        i = o + tl.arange(0, BLOCK)
        total += tl.load(bound + i, mask=i < N, other=0.0)
    norm = (tl.sqrt(tl.sum(total) + tl.load(others)) + tl.sqrt(tl.load(extra))) * SLACK
    finite = norm < float("inf")
    exact = (norm > tl.load(hyper + CLIP)) | (tl.load(hyper + WANTED) > 0)
    tl.store(state + NORM, float("nan"))  # until `_factor` finds it
    tl.store(state + FACTOR, 1.0)
    tl.store(state + BOUND, norm)
    tl.store(state + EXACT, (exact & finite).to(tl.float32))
    tl.store(state + FINITE, tl.load(state + FINITE) * finite.to(tl.float32))


@triton.jit
def _factor(norms, others, state, hyper, N, BLOCK: tl.constexpr):
    """What the gradient is multiplied by (the factor of torch.nn.utils.clip_grad_norm_). One program."""
    if tl.load(state + EXACT) > 0:
        total = tl.zeros([BLOCK], tl.float32)
        for o in range(0, N, BLOCK):
            i = o + tl.arange(0, BLOCK)
            total += tl.load(norms + i, mask=i < N, other=0.0)
        norm = tl.sqrt(tl.sum(total) + tl.load(others))
        finite = norm < float("inf")
        tl.store(state + NORM, norm)
        tl.store(state + FACTOR, tl.minimum(tl.load(hyper + CLIP) / (norm + 1e-6), 1.0))
        tl.store(state + FINITE, tl.load(state + FINITE) * finite.to(tl.float32))


@triton.jit
def _row_gradient(
    g, partial, seg_low, seg_high, extra, slot, scale, d, inside, D: tl.constexpr, HAS_EXTRA: tl.constexpr,
):  # fmt: skip
    """One slice of a row's gradient: the list's end (g), its segments in order, and the extra row, if it has one."""
    segment = partial + seg_low.to(tl.int64) * D + d
    for _ in range(seg_low, seg_high):
        g += tl.load(segment, mask=inside, other=0.0)
        segment += D
    g *= scale
    if HAS_EXTRA:
        g += tl.load(extra + tl.maximum(slot, 0).to(tl.int64) * D + d, mask=d < tl.where(slot >= 0, D, 0), other=0.0)
    return g


@triton.jit
def _load_row(w_ptr, m_ptr, v_ptr, at, inside, UPDATE: tl.constexpr):
    """(w, m, v) of one slice of a row; without UPDATE the moments are not read."""
    w = tl.load(w_ptr + at, mask=inside, other=0.0)
    m = w
    v = w
    if UPDATE:
        m = tl.load(m_ptr + at, mask=inside, other=0.0)
        v = tl.load(v_ptr + at, mask=inside, other=0.0)
    return w, m, v


@triton.jit
def _store_row(w_ptr, m_ptr, v_ptr, shadow_ptr, at, w, m, v, inside, HAS_SHADOW: tl.constexpr):
    """Write one slice of a row, its moments and its copy in the compute dtype."""
    tl.store(w_ptr + at, w, mask=inside)
    tl.store(m_ptr + at, m, mask=inside)
    tl.store(v_ptr + at, v, mask=inside)
    if HAS_SHADOW:
        tl.store(shadow_ptr + at, w.to(shadow_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _bias_gradient(weight, start, high, extra_bias, slot, HAS_EXTRA: tl.constexpr, LENGTH: tl.constexpr):
    """Σ dL/dz over all places of a latent's list, those in segments too: the bias has no row to gather."""
    i = tl.arange(0, LENGTH)
    summed = tl.zeros([LENGTH], tl.float32)
    for p in range(start, high, LENGTH):
        summed += tl.load(weight + p + i, mask=p + i < high, other=0.0)
    gradient = tl.sum(summed)
    if HAS_EXTRA:
        gradient += tl.load(extra_bias + tl.maximum(slot, 0), mask=slot >= 0, other=0.0)
    return gradient


@triton.jit
def _move_bias(gradient, bias_ptr, m_ptr, v_ptr, shadow_ptr, f, hyper, HAS_SHADOW: tl.constexpr):
    """Adam on one latent's bias."""
    b, m, v = _adam(gradient, tl.load(bias_ptr + f), tl.load(m_ptr + f), tl.load(v_ptr + f), hyper)
    tl.store(bias_ptr + f, b)
    tl.store(m_ptr + f, m)
    tl.store(v_ptr + f, v)
    if HAS_SHADOW:
        tl.store(shadow_ptr + f, b.to(shadow_ptr.dtype.element_ty))


# The row is held as its first HEAD elements and the remaining D − HEAD in TAIL lanes, both powers of two, so that a
# width such as 2304 = 2048 + 256 idles no lanes. Lanes beyond D load as 0 and have gradient 0: they add nothing to
# the projection or the norms, and are not stored.
#
# Every program reads FINITE, FACTOR and EXACT and writes only its own row, so the order of programs does not matter.
#
# 70 lines: it holds one row in two pieces (HEAD and TAIL) from the first load to the last store. Triton inlines
# helpers, but a piece that may be absent cannot be handed to one.
@triton.jit
def _rows(
    row, weight, first, segment, table, prefixes, partial, extra, extra_bias, slots, norms, state, hyper,
    w_ptr, m_ptr, v_ptr, shadow_ptr, bias_ptr, bias_m_ptr, bias_v_ptr, bias_shadow_ptr, scale, B,
    D: tl.constexpr, G: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, UPDATE: tl.constexpr, UNIT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_EXTRA: tl.constexpr, HAS_SHADOW: tl.constexpr, LENGTH: tl.constexpr,
    UNROLL: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """One latent's row of one matrix: its squared gradient norm, or (UPDATE) its update. One program per latent."""
    f = tl.program_id(0)
    go = tl.load(state + FINITE) > 0
    if not UPDATE:
        go = go & (tl.load(state + EXACT) > 0)
    if go:
        seg_low = tl.load(segment + f)
        seg_high = tl.load(segment + f + 1)
        start = tl.load(first + f)
        high = tl.load(first + f + 1)
        low = start + (seg_high - seg_low) * LENGTH  # places before it are in segments, summed already
        own, held = _group_table(table, prefixes, f, B, D, G)
        high = tl.where(held, high, low)  # no prefix holds the latent: nothing to sum
        slot = tl.full([], -1, tl.int32)
        if HAS_EXTRA:
            slot = tl.load(slots + f)
        factor = tl.load(state + FACTOR)
        at = f.to(tl.int64) * D

        # Row and moments are loaded before the gradient is summed, so that they have arrived when it is.
        d = tl.arange(0, HEAD)
        w, m, v = _load_row(w_ptr, m_ptr, v_ptr, at + d, d < D, UPDATE)
        if TAIL > 0:
            d2 = HEAD + tl.arange(0, TAIL)
            w2, m2, v2 = _load_row(w_ptr, m_ptr, v_ptr, at + d2, d2 < D, UPDATE)
            g, g2 = _gather_both(row, weight, own, low, high, d, d2, D, UNROLL)
            g2 = _row_gradient(
                g2, partial, seg_low, seg_high, extra, slot, scale, d2, d2 < D, D, HAS_EXTRA
            )  # fmt: skip
        else:
            g = _gather(row, weight, own, low, high, d, D, UNROLL)
        g = _row_gradient(g, partial, seg_low, seg_high, extra, slot, scale, d, d < D, D, HAS_EXTRA)
        along = tl.sum(g * w)
        if TAIL > 0:
            along += tl.sum(g2 * w2)
        if UNIT:  # w has length 1, so ⟨g, w⟩ w is the part of g along it
            g -= along * w
            if TAIL > 0:
                g2 -= along * w2
        if HAS_BIAS:
            bias_g = _bias_gradient(weight, start, high, extra_bias, slot, HAS_EXTRA, LENGTH)

        if UPDATE:
            w, m, v = _adam(g * factor, w, m, v, hyper)
            square = tl.sum(w * w)
            if TAIL > 0:
                w2, m2, v2 = _adam(g2 * factor, w2, m2, v2, hyper)
                square += tl.sum(w2 * w2)
            if UNIT:
                length = tl.maximum(tl.sqrt(square), TINY)
                w = w / length
                if TAIL > 0:
                    w2 = w2 / length
            _store_row(w_ptr, m_ptr, v_ptr, shadow_ptr, at + d, w, m, v, d < D, HAS_SHADOW)
            if TAIL > 0:
                _store_row(w_ptr, m_ptr, v_ptr, shadow_ptr, at + d2, w2, m2, v2, d2 < D, HAS_SHADOW)
            if HAS_BIAS:
                _move_bias(bias_g * factor, bias_ptr, bias_m_ptr, bias_v_ptr, bias_shadow_ptr, f, hyper, HAS_SHADOW)
        else:
            square = tl.sum(g * g)
            if TAIL > 0:
                square += tl.sum(g2 * g2)
            if HAS_BIAS:
                square += bias_g * bias_g
            tl.store(norms + f, square)


@triton.jit
def _dense_adam(grad, state, hyper, w_ptr, m_ptr, v_ptr, shadow_ptr, N, HAS_SHADOW: tl.constexpr, BLOCK: tl.constexpr):
    """Adam on a parameter whose gradient lies in memory."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = i < N
    if tl.load(state + FINITE) > 0:
        g = tl.load(grad + i, mask=ok, other=0.0) * tl.load(state + FACTOR)
        w, m, v = _adam(
            g,
            tl.load(w_ptr + i, mask=ok, other=0.0),
            tl.load(m_ptr + i, mask=ok, other=0.0),
            tl.load(v_ptr + i, mask=ok, other=0.0),
            hyper,
        )
        tl.store(w_ptr + i, w, mask=ok)
        tl.store(m_ptr + i, m, mask=ok)
        tl.store(v_ptr + i, v, mask=ok)
        if HAS_SHADOW:
            tl.store(shadow_ptr + i, w.to(shadow_ptr.dtype.element_ty), mask=ok)


@dataclass(frozen=True)
class Matrix:
    """A parameter that the kernels move: float32 master, Adam's moments, and its copy in another compute dtype."""

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    shadow: Tensor | None

    @property
    def compute(self) -> Tensor:
        """What matrix products and gathers read."""
        return self.weight if self.shadow is None else self.shadow


@dataclass(frozen=True)
class ExtraRows:
    """Gradient rows that do not come from the lists: of penalties on the parameters, or of AuxK's dead latents.

    `slot` [F] int32: which row belongs to a latent; −1: none. `encoder` [n, d_in], `bias` [n] and `decoder` [n, d_out]
    float32; None: zeros.
    """

    slot: Tensor
    encoder: Tensor | None
    bias: Tensor | None
    decoder: Tensor | None


def bound_rows(
    lists: LatentLists,
    *,
    grad_value: Tensor,
    list_grad: Tensor,
    input_norm: Tensor,
    reach: Tensor,
    prefixes: Tensor,
    bound: Tensor,
    scale: float,
) -> None:
    """Write dL/dz in list order [B·k], and each latent's squared bound [F] on the norm of its gradients.

    Args:
        grad_value: [B·k] dL/dz by entry.
        input_norm: [B] ‖u_b‖.
        reach: [G, B] bounds on ‖S_g‖.
    """
    n_groups, n_rows = reach.shape
    _bound_rows[(lists.fired.shape[0],)](
        lists.row, lists.entry, lists.code, grad_value, list_grad, lists.first, input_norm, reach, prefixes, bound,
        scale, n_rows, G=n_groups, BLOCK=32, num_warps=1,
    )  # fmt: skip


def decide(*, bound: Tensor, others: Tensor, extra: Tensor, state: Tensor, hyper: Tensor) -> None:
    """Decide on the device whether the exact norm is needed.

    Args:
        bound: [F] of `bound_rows`.
        others: [1] squared norm of the gradients of the decoder bias and the skip connection.
        extra: [1] squared norm of the rows in ExtraRows.
    """
    n = bound.shape[0]
    _decide[(1,)](bound, others, extra, state, hyper, n, SLACK=_SLACK, BLOCK=_reduce_block(n), num_warps=8)


def factor(*, norms: Tensor, others: Tensor, state: Tensor, hyper: Tensor) -> None:
    """The clipping factor from the rows' squared norms, where `decide` found them necessary."""
    n = norms.numel()
    _factor[(1,)](norms, others, state, hyper, n, BLOCK=_reduce_block(n), num_warps=8)


def sum_segments(lists: LatentLists, *, weight: Tensor, table: Tensor, prefixes: Tensor, partial: Tensor) -> None:
    """Sum the segments of long lists: partial [max_segments, d] float32 from weight [B·k] and table [G, B, d].

    With G = 1 and prefixes (F,), the table is the same for every latent.
    """
    if not lists.max_segments:
        return
    n_groups, n_rows, width = table.shape
    n_latents = lists.fired.shape[0]
    block = min(1024, triton.next_power_of_2(width))
    _segment_rows[(lists.max_segments, triton.cdiv(width, block))](
        lists.row, weight, lists.first, lists.segment, table, prefixes, partial, n_latents, n_rows,
        D=width, G=n_groups, STEPS=n_latents.bit_length(), LENGTH=lists.segment_length, BLOCK=block, UNROLL=4,
        num_warps=4,
    )  # fmt: skip


def rows(
    lists: LatentLists,
    matrix: Matrix,
    *,
    weight: Tensor,
    table: Tensor,
    prefixes: Tensor,
    partial: Tensor,
    state: Tensor,
    hyper: Tensor,
    scale: float,
    unit: bool,
    update: bool,
    norms: Tensor,
    bias: Matrix | None = None,
    extra: Tensor | None = None,
    extra_bias: Tensor | None = None,
    slots: Tensor | None = None,
) -> None:
    """Update every row of `matrix` [F, d] (and the bias [F]), or write the squared norms of their gradients.

    Args:
        weight: [B·k] in list order: dL/dz (encoder) or codes (decoder).
        table: [G, B, d] what the rows are summed from: inputs (G = 1) or suffix errors.
        prefixes: [G] int32.
        partial: [max_segments, d] from `sum_segments`.
        scale: factor of the sum.
        unit: rows are held at unit length.
        update: False: only the norms, [F] float32.
        extra, extra_bias, slots: further gradient rows, as in ExtraRows.
    """
    n_groups, n_rows, width = table.shape
    head = 1 << (width.bit_length() - 1)
    tail = 0 if head == width else triton.next_power_of_2(width - head)
    w, b = matrix, bias or matrix
    none = state  # any pointer: the kernel does not read it
    _rows[(lists.fired.shape[0],)](
        lists.row, weight, lists.first, lists.segment, table, prefixes, partial,
        none if extra is None else extra, none if extra_bias is None else extra_bias, none if slots is None else slots,
        norms, state, hyper, w.weight, w.exp_avg, w.exp_avg_sq, w.compute,
        b.weight, b.exp_avg, b.exp_avg_sq, b.compute, scale, n_rows,
        D=width, G=n_groups, HEAD=head, TAIL=tail, UPDATE=update, UNIT=unit, HAS_BIAS=bias is not None,
        HAS_EXTRA=extra is not None, HAS_SHADOW=w.shadow is not None, LENGTH=lists.segment_length, UNROLL=4,
        TINY=torch.finfo(torch.float32).tiny, num_warps=_row_warps(head),
    )  # fmt: skip


def dense_adam(grad: Tensor, parameter: Matrix, *, state: Tensor, hyper: Tensor) -> None:
    """Adam on `parameter` with a gradient that lies in memory (decoder bias, skip connection)."""
    n = grad.numel()
    _dense_adam[(triton.cdiv(n, 1024),)](
        grad, state, hyper, parameter.weight, parameter.exp_avg, parameter.exp_avg_sq,
        parameter.compute, n, HAS_SHADOW=parameter.shadow is not None, BLOCK=1024, num_warps=4,
    )  # fmt: skip


def _row_warps(head: int) -> int:
    return max(1, min(8, head // 256))


def _reduce_block(n: int) -> int:
    return int(min(4096, triton.next_power_of_2(n)))
