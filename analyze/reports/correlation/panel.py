"""What a latent's panel shows of its correlations: its duplicates, and the latents that fire together with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .found import Found

WORTH_SHOWING = 0.05
"""Least r of a neighbour in a latent's panel; neighbours.parquet has them all."""

DUPLICATES_SHOWN = 60

COLUMNS = [
    ["latent", "latent"],
    ["r", "number"],
    ["Jaccard", "number"],
    ["P(it | this)", "number"],
    ["decoder cosine", "number"],
]


def panel(found: Found) -> Callable[[int], list[dict[str, Any]]]:
    """Latent → blocks of its panel (analyze/render/report.js)."""

    def blocks(latent: int) -> list[dict[str, Any]]:
        return [*_duplicates(found, latent), *_neighbours(found, latent)]

    return blocks


def _duplicates(found: Found, latent: int) -> list[dict[str, Any]]:
    number = found.in_cluster.get(latent)
    if number is None:
        return []
    cluster = found.clusters[number]
    return [
        {
            "type": "latents",
            "title": f"Duplicate cluster {number}",
            "ids": [m for m in cluster.members if m != latent][:DUPLICATES_SHOWN],
            "note": f"weakest link r = {cluster.weakest[2]:.3f}",
        }
    ]


def _neighbours(found: Found, latent: int) -> list[dict[str, Any]]:
    near = found.neighbours
    columns = [a[latent] for a in (near.other, near.r, near.jaccard, near.p_other, near.cos)]
    rows = [
        [int(other), *(round(float(value), 4) for value in values)]
        for other, *values in zip(*columns, strict=True)
        if other >= 0 and values[0] >= WORTH_SHOWING
    ]
    if not rows:
        return []
    return [
        {
            "type": "table",
            "title": "Fires together with",
            "note": "excluding position 0",
            "columns": COLUMNS,
            "rows": rows,
        }
    ]
