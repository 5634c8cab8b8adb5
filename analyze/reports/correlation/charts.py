"""The charts of the correlation report: r of all pairs, and what only looks like a correlation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...result import Chart, Series
from .config import CorrelationConfig
from .found import Found
from .nulls import SortedTop
from .scan import BINS, Scan


def charts(found: Found, config: CorrelationConfig) -> list[Chart]:
    """Histogram of r; sorted top values beside their null."""
    return [_histogram(found, config), _sorted_top(found.sorted_top, config.sorted_top)]


def _histogram(found: Found, config: CorrelationConfig) -> Chart:
    def share(scanned: Scan) -> list[float | None]:
        return [n / scanned.n_pairs if n else None for n in scanned.histogram.tolist()]

    return Chart(
        "r_histogram",
        "Correlation of all pairs of latents",
        "Share of pairs by r (log scale). Shuffled: rows of one latent of each pair permuted, so that only chance "
        "correlates.",
        np.linspace(-1, 1, BINS + 1).round(4).tolist(),
        [
            Series("including position 0", share(found.with_bos), "with_bos"),
            Series("excluding position 0", share(found.rest)),
            Series("shuffled null", share(found.null), "null"),
        ],
        x_label="Pearson r",
        y_label="share of pairs",
        log_y=True,
        marks=[(config.threshold, "threshold")],
    )


def _sorted_top(sorted_top: SortedTop, length: int) -> Chart:
    edges = np.linspace(-1, 1, 81)
    observed, null = sorted_top.observed, sorted_top.null

    def share(values: NDArray[np.float64]) -> list[float]:
        counts = np.histogram(values, edges)[0]
        shares: list[float] = (counts / max(1, counts.sum())).tolist()
        return shares

    medians = [f"{np.median(v):.3f}" if len(v) else "–" for v in (observed, null)]
    return Chart(
        "sorted_top",
        f"Not a correlation: sorted top-{length} values",
        f'Older reports of "0.92–0.99 correlation" correlated each latent\'s {length} largest activations after '
        f"sorting them. Sorted lists always agree: the median here is {medians[0]}, and {medians[1]} for independent "
        "random numbers. It says nothing about latents; it is shown so that old figures can be understood.",
        edges.round(4).tolist(),
        [
            Series(f"pairs of these latents, median {medians[0]}", share(observed)),
            Series(f"independent exponentials, median {medians[1]}", share(null), "null"),
        ],
        x_label="correlation of sorted lists",
        y_label="share of pairs",
    )
