"""Whether Triton's interpreter works in this environment (Triton 3.6 needs numpy < 2.4, for one)."""

from __future__ import annotations

import warnings
from functools import cache

import torch
import triton
import triton.language as tl


@triton.jit
def _sum_to(n_ptr, out_ptr):  # type: ignore[no-untyped-def]
    n = tl.load(n_ptr)
    total = 0
    for i in range(n):
        total += i
    tl.store(out_ptr, total)


@cache
def interpreter_problem() -> str | None:
    """What goes wrong when a kernel loops to a bound it has loaded, or None."""
    out = torch.zeros(1, dtype=torch.int32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _sum_to[(1,)](torch.tensor([4], dtype=torch.int32), out)
    except Exception as error:  # whatever an unknown combination of versions may raise
        return f"{type(error).__name__}: {error}"
    return None if out.item() == 6 else f"a kernel summed 0 + 1 + 2 + 3 to {out.item()}"
