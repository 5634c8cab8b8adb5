"""Raw activations into the normalised rows of a step, in one pass."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _normalise(
    x_ptr, mean, scale, out, norm,
    D: tl.constexpr, BLOCK: tl.constexpr, RMS: tl.constexpr, EPS: tl.constexpr, HAS_NORM: tl.constexpr,
    EACH: tl.constexpr,
):  # fmt: skip
    """(x · [1/rms(x)] − mean) / scale, and the norm of what was stored; one program per row."""
    b = tl.program_id(0)
    at = b.to(tl.int64) * D
    root = 1.0
    if RMS:
        square = tl.zeros([BLOCK], tl.float32)
        for o in range(0, D, BLOCK):
            d = o + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + at + d, mask=d < D, other=0.0).to(tl.float32)
            square += x * x
        root = 1.0 / tl.sqrt(tl.sum(square) / D + EPS)
    if not EACH:
        divisor = tl.load(scale)
    square = tl.zeros([BLOCK], tl.float32)
    for o in range(0, D, BLOCK):
        d = o + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at + d, mask=d < D, other=0.0).to(tl.float32) * root
        if EACH:
            divisor = tl.load(scale + d, mask=d < D, other=1.0)
        u = ((x - tl.load(mean + d, mask=d < D, other=0.0)) / divisor).to(out.dtype.element_ty)
        tl.store(out + at + d, u, mask=d < D)
        kept = tl.where(d < D, u.to(tl.float32), 0.0)
        square += kept * kept
    if HAS_NORM:
        tl.store(norm + b, tl.sqrt(tl.sum(square)))


def normalise_rows(
    x: Tensor, *, mean: Tensor, scale: Tensor, out: Tensor, rms_eps: float | None = None, norm: Tensor | None = None
) -> None:
    """Write (x − mean)/scale into `out`, and ‖out_b‖ into `norm`.

    Args:
        x: [B, d] contiguous, any float dtype.
        mean: [d] float32.
        scale: float32, a scalar or [d].
        out: [B, d], the dtype wanted.
        rms_eps: divide each row by its root mean square first, with this under the root; None: do not.
        norm: [B] float32, or None.
    """
    n_rows, width = x.shape
    block = min(1024, triton.next_power_of_2(width))
    _normalise[(n_rows,)](
        x, mean, scale, out, mean if norm is None else norm, D=width, BLOCK=block, RMS=rms_eps is not None,
        EPS=0.0 if rms_eps is None else rms_eps, HAS_NORM=norm is not None,
        EACH=scale.ndim == 1, num_warps=4,
    )  # fmt: skip
