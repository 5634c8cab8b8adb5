"""What a latent's panel shows of its positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .scores import PositionScores


def panel(s: PositionScores, bin_names: list[str]) -> Callable[[int], list[dict[str, Any]]]:
    """Latent → blocks of its panel (analyze/render/report.js): its firings by bin beside all rows."""
    base = s.row_share.round(5).tolist()

    def blocks(latent: int) -> list[dict[str, Any]]:
        n = int(s.fired[latent])
        if n == 0:
            return []
        note = f"{n:,} firings" if s.scored[latent] else f"only {n:,} firings: not scored"
        return [
            {
                "type": "chart",
                "title": "Where it fires",
                "note": note,
                "x": bin_names,
                "series": [
                    {"name": "its firings", "role": "data", "y": (s.bins[latent] / n).round(5).tolist()},
                    {"name": "all rows", "role": "null", "y": base},
                ],
                "x_label": "position",
                "y_label": "share",
            }
        ]

    return blocks
