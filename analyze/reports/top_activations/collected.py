"""What the pass over a cache collected for the report of top activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...stream.keep import Keeper


@dataclass(frozen=True)
class Collected:
    """Per latent [F], over all rows under analysis.

    Attributes:
        top: its largest activations on ordinary rows (neither at position 0 nor massive), identical contexts once, with
            the activations around them.
        apart: its largest activation at position 0 or on a massive row, likewise.
        raw: its largest activations, repeats included.
        sample: a uniform sample of its firings, excluding position 0, with the activations around them.
        histogram: [F, bins] of its activations, see kernels.py.
        fired, fired_first, fired_massive: rows on which it fires, those at position 0, and massive ones. sum: Σ z over
            the first.
        rows, rows_first, rows_massive: rows in all, at position 0, and massive ones.
        silent: rows of the cache drawn uniformly, excluding position 0 → the latents that fire there, ascending.
    """

    top: Keeper
    apart: Keeper
    raw: Keeper
    sample: Keeper
    histogram: NDArray[np.int64]
    fired: NDArray[np.int64]
    fired_first: NDArray[np.int64]
    fired_massive: NDArray[np.int64]
    sum: NDArray[np.float64]
    rows: int
    rows_first: int
    rows_massive: int
    silent: dict[int, NDArray[np.int32]]
