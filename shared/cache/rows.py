"""Which rows of a cache count: text, and text excluding position 0; rows flagged NONFINITE never do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Flag, positions


def text_rows(flags: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Rows that are not padding, in the shape of `flags`."""
    found: NDArray[np.bool_] = (flags & np.uint8(Flag.PADDING)) == 0
    return found


def counted_rows(flags: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Text rows that are not left out for an infinity or a NaN, in the shape of `flags`."""
    found: NDArray[np.bool_] = (flags & np.uint8(Flag.PADDING | Flag.NONFINITE)) == 0
    return found


def trained_rows(flags: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Rows that count and may be trained on, in the shape of `flags`: all but those of roles that the harvest left
    out."""
    found: NDArray[np.bool_] = counted_rows(flags) & ((flags & np.uint8(Flag.UNTRAINED)) == 0)
    return found


def first_rows(flags: NDArray[np.uint8], ctx: int) -> NDArray[np.bool_]:
    """Rows that count at position 0.

    Args:
        flags: [n_seq, ctx], or [R] of whole sequences in order.

    Returns:
        In the shape of `flags`.
    """
    found: NDArray[np.bool_] = counted_rows(flags) & (_positions(flags, ctx) == 0)
    return found


def rest_rows(flags: NDArray[np.uint8], ctx: int) -> NDArray[np.bool_]:
    """Rows that count excluding position 0. Arguments and shape as for :func:`first_rows`."""
    found: NDArray[np.bool_] = counted_rows(flags) & (_positions(flags, ctx) > 0)
    return found


def _positions(flags: NDArray[np.uint8], ctx: int) -> NDArray[np.int32]:
    return positions(np.arange(flags.size).reshape(flags.shape), flags, ctx)
