"""Charts of the reconstruction report: error by position, active latents, cosines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...result import Chart, Series
from ...subject.geometry import BINS
from .counts import Counts
from .decoder import Decoder

L0_BARS = 60


def charts(counts: Counts, decoder: Decoder) -> list[Chart]:
    """All charts; that of the alignment for SAEs only."""
    found = [_by_position(counts), _l0(counts), _nearest(decoder), _all_pairs(decoder)]
    if decoder.alignment is not None:
        found.append(_alignment(decoder.alignment))
    return found


def _by_position(counts: Counts) -> Chart:
    by_position = counts.fvu_by_position()
    return Chart(
        "fvu_by_position",
        "Unexplained variance by position",
        "FVU of the rows at each position, the variance about the mean of all rows. Position 0 is the first point.",
        list(range(len(by_position))),
        [Series("FVU", by_position.tolist())],
        "position in the sequence",
        "FVU",
        kind="lines",
    )


def _l0(counts: Counts) -> Chart:
    edges, bars = _l0_bars(counts.l0[1])
    return Chart(
        "l0",
        "Active latents per row",
        "Distribution of L0, excluding position 0.",
        edges,
        [Series("rows", bars)],
        "latents that fire on a row",
        "rows",
    )


def _nearest(decoder: Decoder) -> Chart:
    edges = np.linspace(-0.2, 1, 61)
    return Chart(
        "max_cosine",
        "Nearest decoder neighbour",
        "Each latent's largest decoder cosine with another one. Null: as many random directions in as many dimensions.",
        edges.round(3).tolist(),
        [
            Series("latents", _shares(decoder.geometry.max_cos, edges)),
            Series("random directions", _shares(decoder.random, edges), "null"),
        ],
        "largest cosine",
        "share of latents",
    )


def _all_pairs(decoder: Decoder) -> Chart:
    pairs = decoder.geometry.histogram
    return Chart(
        "all_cosines",
        "Cosines of all pairs of decoder rows",
        "Share of pairs (log scale).",
        np.linspace(-1, 1, BINS + 1)[::4].round(3).tolist(),  # four bins of the histogram make one bar
        [Series("pairs", (pairs.reshape(-1, 4).sum(axis=1) / max(1, pairs.sum())).tolist())],
        "cosine",
        "share of pairs",
        log_y=True,
    )


def _alignment(alignment: NDArray[np.float64]) -> Chart:
    edges = np.linspace(-1, 1, 81)
    return Chart(
        "alignment",
        "Encoder against decoder",
        "Cosine of each latent's encoder row with its decoder row.",
        edges.round(3).tolist(),
        [Series("latents", np.histogram(alignment, edges)[0].tolist())],
        "cosine",
        "latents",
    )


def _l0_bars(distribution: NDArray[np.int64]) -> tuple[list[float], list[int]]:
    """(edges, counts) of at most L0_BARS bars over the L0 that occur; edges lie between whole numbers."""
    used = np.flatnonzero(distribution)
    if not len(used):
        return [0.0, 1.0], [0]
    low, high = int(used[0]), int(used[-1]) + 1
    width = max(1, -(-(high - low) // L0_BARS))  # rounded up
    edges = np.arange(low, high + width, width)
    counts = [int(distribution[a : a + width].sum()) for a in edges[:-1]]
    return [float(e) - 0.5 for e in edges], counts


def _shares(values: NDArray[Any], edges: NDArray[np.float64]) -> list[float]:
    """Share of values in each bin; values beyond the edges count in the outermost bins."""
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    shares: list[float] = (counts / max(1, counts.sum())).tolist()
    return shares
