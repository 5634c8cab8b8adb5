"""The tables of the position report: latents locked to position 0, and to another stretch of the sequence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...result import Table, TableColumn
from .scores import PositionScores

LISTED = 100


def tables(s: PositionScores) -> list[Table]:
    """Both, the most biased latents first."""
    return [_bos_biased(s), _position_biased(s)]


def _strongest(mask: NDArray[np.bool_], by: NDArray[np.float64]) -> NDArray[np.int64]:
    """The latents of a mask [F], largest first."""
    chosen = np.flatnonzero(mask)
    return chosen[np.argsort(-by[chosen], kind="stable")]


def _bos_biased(s: PositionScores) -> Table:
    latents = _strongest(s.bos, s.share)
    return Table(
        "bos_biased",
        "BOS-biased latents",
        "Latents that fire at position 0 far beyond the base rate.",
        [
            TableColumn("latent", "latent"),
            TableColumn("fires on rows", "integer"),
            TableColumn("share at position 0", "percent"),
            TableColumn("enrichment", "number", "(n_i0/n_i) / (N_0/N)"),
            TableColumn("q", "probability", "Exact binomial test, Benjamini–Hochberg."),
            TableColumn("share in its top", "percent", "Repeats included."),
            TableColumn("… identical contexts once", "percent"),
        ],
        [
            [int(i), int(s.fired[i]), s.share[i], s.enrichment[i], s.q[i], s.top[i], s.top_distinct[i]]
            for i in latents[:LISTED]
        ],
        len(latents),
        more="position.parquet",
    )


def _position_biased(s: PositionScores) -> Table:
    latents = _strongest(s.biased, s.mi)
    rows = [
        [
            int(i),
            int(s.fired[i] - s.bins[i, 0]),
            int(s.biggest_bin[i]),
            s.biggest[i],
            s.mi[i],
            s.mi_q[i],
            s.kl[i],
            s.spearman[i],
        ]
        for i in latents[:LISTED]
    ]
    return Table(
        "position_biased",
        "Position-biased latents",
        "Latents with most of their other firings in one stretch of the sequence, excluding position 0.",
        [
            TableColumn("latent", "latent"),
            TableColumn("fires on rows", "integer"),
            TableColumn("fullest bin", "integer"),
            TableColumn("share there", "percent"),
            TableColumn("MI beyond shifts (bits)", "number"),
            TableColumn("q", "probability"),
            TableColumn("KL (bits)", "number"),
            TableColumn("Spearman", "number"),
        ],
        rows,
        len(latents),
        more="position.parquet",
    )
