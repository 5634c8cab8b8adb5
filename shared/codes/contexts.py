"""Contexts: the tokens that the model could see at a row, and when two rows have the same.

The rule: the context of a row is its token and at most n tokens before it, back to the last BOS of its sequence. The
model could attend to these. Where documents share a sequence and attention crosses them, a document's border does not
end a context; where they are kept apart, every document begins with a BOS, which does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache import Flag
from ..hashing import mix
from .compiled import compiled

BOS = int(Flag.BOS)

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that its powers are distinct modulo 2⁶⁴ for far longer than any context."""

_mix: Any = compiled(mix)


@compiled
def context_start(flags: NDArray[np.uint8], ctx: int, row: int, before: int) -> int:
    """First row of the context of a row with at most `before` tokens before it.

    Args:
        flags: [R] of whole sequences of ctx tokens; row: a place in them.
    """
    start = row
    while row - start < before and start % ctx != 0 and (flags[start] & BOS) == 0:
        start -= 1
    return start


@compiled
def context_hashes(
    tokens: NDArray[Any], flags: NDArray[np.uint8], ctx: int, rows: NDArray[np.int64], before: int
) -> NDArray[np.uint64]:
    """A hash of the context of each row [B]: equal for equal contexts, else different but for chance (2⁻⁶⁴ a pair).

    Args:
        tokens, flags: [R] of whole sequences of ctx tokens; rows: [B] places in them.
        before: most tokens of a context before the row's own.
    """
    hashes = np.empty(len(rows), np.uint64)
    for k in range(len(rows)):
        # A polynomial in MULTIPLIER modulo 2⁶⁴, the row's own token first; no token is a zero coefficient, so contexts
        # of different lengths differ.
        total, factor = np.uint64(0), np.uint64(1)
        for r in range(rows[k], context_start(flags, ctx, rows[k], before) - 1, -1):
            total += _mix(np.uint64(tokens[r]) + np.uint64(1)) * factor
            factor *= MULTIPLIER
        hashes[k] = _mix(total)
    return hashes
