"""The charts of the position report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...result import Chart, Series
from .bins import Bins
from .config import PositionConfig
from .scores import PositionScores

WORTH_DRAWING = 1.02
"""The profile is drawn where its highest point exceeds its lowest by this factor; with TopK it never does."""


def charts(s: PositionScores, bins: Bins, config: PositionConfig) -> list[Chart]:
    """Firings by stretch; position 0 among top activations; active latents by position where they vary."""
    return [_firing_share(s, bins.names), _top(s, config.top), *_profile(s, bins)]


def _firing_share(s: PositionScores, bin_names: list[str]) -> Chart:
    alive = s.fired > 0
    shares = s.bins[alive] / s.fired[alive][:, None]
    return Chart(
        "firing_share",
        "Where latents fire",
        "Mean over latents of the share of their firings in each stretch of the sequence; position 0 is a bin of its "
        "own. A latent without preference follows the rows.",
        bin_names,
        [
            Series("mean share of a latent's firings", shares.mean(axis=0).tolist() if len(shares) else []),
            Series("share of rows", s.row_share.tolist(), "null"),
        ],
        x_label="position in the sequence",
        y_label="share",
    )


def _top(s: PositionScores, top: int) -> Chart:
    edges = np.linspace(0, 1, 21)

    def histogram(values: NDArray[np.float64]) -> list[int]:
        counts: list[int] = np.histogram(values[np.isfinite(values)], edges)[0].tolist()
        return counts

    return Chart(
        "bos_share_top",
        f"Position 0 among each latent's top {top}",
        "How many latents have what share of their top activations at position 0. All rows at position 0 carry the "
        "same vector, so repeats inflate the raw share.",
        edges.round(3).tolist(),
        [
            Series("raw", histogram(s.top), "with_bos"),
            Series("identical contexts once", histogram(s.top_distinct)),
        ],
        x_label="share at position 0",
        y_label="latents",
        log_y=True,
    )


def _profile(s: PositionScores, bins: Bins) -> list[Chart]:
    """Active latents per row at each position; no chart where they are the same everywhere."""
    with np.errstate(invalid="ignore", divide="ignore"):
        per_row = np.where(s.profile_rows > 0, s.profile_firings / s.profile_rows, np.nan)
    if not np.nanmax(per_row, initial=0) > WORTH_DRAWING * np.nanmin(per_row, initial=np.inf):
        return []
    return [
        Chart(
            "firings_by_position",
            "Active latents by position",
            "Mean number of latents that fire on a row at each position.",
            bins.profile_starts.tolist(),
            [Series("active latents per row", per_row.tolist())],
            x_label="position in the sequence",
            y_label="active latents",
            kind="lines",
        )
    ]
