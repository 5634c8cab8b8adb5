"""The table of nested groups, and the panel of a latent's nearest decoder rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from ....shared.joint_names import parts_of
from ...result import Table, TableColumn
from ...subject.geometry import Geometry
from ...subject.subject import Subject
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


def by_site(counts: Counts, subject: Subject) -> dict[str, dict[str, float | None]]:
    """FVU and mean FVU per dimension of each target site alone, excluding position 0."""
    out, start = {}, 0
    for site, width in zip(parts_of(subject.target), subject.coder.target_widths, strict=True):
        part = counts.rest.part(start, start + width)
        ordinary = counts.ordinary.part(start, start + width)
        out[site] = {
            "fvu": part.fvu,
            "fvu_dims": part.fvu_dims,
            "fvu_without_massive": ordinary.fvu,
            "fvu_dims_without_massive": ordinary.fvu_dims,
        }
        start += width
    return out


def sites(counts: Counts, subject: Subject) -> Table | None:
    """The reconstruction of each site of a crosscoder; None for a coder of one site."""
    if subject.coder.n_targets == 1:
        return None
    massive = counts.n_massive > 0
    rows = [
        [site, figures["fvu"], figures["fvu_dims"], *([figures["fvu_without_massive"]] if massive else [])]
        for site, figures in by_site(counts, subject).items()
    ]
    columns = [
        TableColumn("site", "text"),
        TableColumn("FVU", "number"),
        TableColumn("mean FVU per dimension", "number"),
    ]
    columns += [TableColumn("FVU, excluding massive rows", "number")] if massive else []
    caption = (
        "The reconstruction of each site alone, excluding position 0. The figures of the whole count each site in "
        "units of its own variance."
    )
    return Table("sites", "Sites", caption, columns, rows, len(rows))


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
