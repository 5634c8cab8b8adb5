"""The table of nested groups, and the panel of a latent's nearest decoder rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from ...result import Table, TableColumn
from ...subject.geometry import Geometry
from .counts import Counts


def groups(counts: Counts, prefixes: Sequence[int]) -> Table | None:
    """How the nested groups of the dictionary are used; None for a dictionary without groups."""
    if len(prefixes) < 2:
        return None
    fired = counts.fired_rest
    total, rows = max(1, int(fired.sum())), max(1, counts.n_rest)
    listed = []
    for g, (low, high) in enumerate(pairwise((0, *prefixes))):
        part = fired[low:high]
        listed.append(
            [
                g + 1,
                high - low,
                int((part > 0).sum()),
                float(part.sum() / rows),
                float(part.sum() / total),
                counts.fvu(prefix=g),
            ]
        )
    return Table(
        "groups",
        "Nested groups",
        "Use of the groups of the dictionary, and the reconstruction of each prefix alone, excluding position 0.",
        [
            TableColumn("group", "integer"),
            TableColumn("latents", "integer"),
            TableColumn("alive", "integer"),
            TableColumn("active per row", "number"),
            TableColumn("share of firings", "percent"),
            TableColumn("FVU up to here", "number", "Reconstruction from this group and all inner groups."),
        ],
        listed,
        len(listed),
    )


def panel(geometry: Geometry) -> Callable[[int], list[dict[str, Any]]]:
    """Latent → a table of its eight nearest decoder rows."""

    def blocks(latent: int) -> list[dict[str, Any]]:
        rows = [
            [int(other), round(float(cos), 4)]
            for other, cos in zip(geometry.near[latent, :8], geometry.near_cos[latent, :8], strict=True)
            if other != latent
        ]
        if not rows:
            return []
        return [
            {
                "type": "table",
                "title": "Nearest decoder rows",
                "note": f"most opposite: cosine {float(geometry.lowest[latent]):.3f}",
                "columns": [["latent", "latent"], ["cosine", "number"]],
                "rows": rows,
            }
        ]

    return blocks
