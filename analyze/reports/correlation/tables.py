"""The tables of the correlation report: clusters of duplicates, named pairs, pairs that only position 0 joins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...result import Table, TableColumn
from .clusters import Cluster
from .config import CorrelationConfig
from .counted import Counted
from .found import Found
from .named_pairs import PairTable

CLUSTERS_LISTED, MEMBERS_LISTED, PAIRS_LISTED, BOS_PAIRS_LISTED = 200, 40, 500, 100

PAIR_COLUMNS = {
    "i": TableColumn("i", "latent"),
    "j": TableColumn("j", "latent"),
    "kind": TableColumn("kind", "text", "structural, functional, split, antipodal, …: see the definitions."),
    "r": TableColumn("r", "number", "Pearson r, excluding position 0."),
    "r_with_bos": TableColumn("r including position 0", "number"),
    "decoder_cosine": TableColumn("decoder cosine", "number"),
    "fired_both": TableColumn("rows with both", "integer"),
    "jaccard": TableColumn("Jaccard", "number", "Rows with both / rows with either."),
    "p_j_given_i": TableColumn("P(j | i)", "number", "Share of i's rows on which j fires too."),
    "p_i_given_j": TableColumn("P(i | j)", "number"),
}
"""Columns of pairs.parquet that the page lists."""


def tables(found: Found, counted: Counted, config: CorrelationConfig) -> list[Table]:
    """All three, and the matrix of the latents that were named."""
    return [
        *([_named(counted, config)] if config.latents else []),
        _clusters(found.clusters, counted),
        _pairs(found.table, counted.rest.n),
        _only_with_bos(found, counted, config),
    ]


def _named(counted: Counted, config: CorrelationConfig) -> Table:
    """Pearson's r of every two of the latents in the settings, in their order."""
    ids = np.array(config.latents)
    fired = counted.rest.n[ids]
    i, j = np.repeat(ids, len(ids)), np.tile(ids, len(ids))
    r = np.where(i == j, 1.0, counted.rest.pearson(i, j, counted.pairs.lookup(i, j)[0])).reshape(len(ids), -1)
    rows: list[list[Any]] = [
        [latent, n, *(float(v) if n and m else None for v, m in zip(of_it, fired.tolist(), strict=True))]
        for latent, n, of_it in zip(config.latents, fired.tolist(), r, strict=True)
    ]
    return Table(
        "named",
        "Correlations of the latents that were named",
        "Pearson's r over rows excluding position 0, of every two; – where one of them never fires.",
        [TableColumn("latent", "latent"), TableColumn("fires on rows", "integer"), *(TableColumn(str(i)) for i in ids)],
        rows,
        len(rows),
    )


def _clusters(clusters: list[Cluster], counted: Counted) -> Table:
    listed = clusters[:CLUSTERS_LISTED]
    members = [np.array(cluster.members[:MEMBERS_LISTED]) for cluster in listed]
    within = [(these[a], these[b]) for these in members for a, b in [np.triu_indices(len(these), 1)]]
    ends = np.cumsum([len(i) for i, _ in within])
    # One look-up for all of them: where the codes were kept, each passes over the codes of its latents.
    i, j = (np.concatenate([side[n] for side in within] or [np.zeros(0, np.int64)]) for n in (0, 1))
    r = np.split(counted.rest.pearson(i, j, counted.pairs.lookup(i, j)[0]), ends[:-1])
    rows: list[list[Any]] = [
        [
            c,
            len(cluster.members),
            these.tolist(),
            cluster.weakest[2],
            list(cluster.weakest[:2]),
            float(np.nanmin(lowest)),
        ]
        for c, (cluster, these, lowest) in enumerate(zip(listed, members, r, strict=False))
    ]
    return Table(
        "clusters",
        "Duplicate clusters",
        "Latents joined by duplicate pairs. The weakest link is the edge that holds the cluster together; the lowest "
        "r of any two members shows whether it is one thing or a chain.",
        [
            TableColumn("cluster", "integer"),
            TableColumn("size", "integer"),
            TableColumn("members", "latents"),
            TableColumn("weakest link r", "number", "Weakest edge of the maximum spanning tree."),
            TableColumn("between", "latents"),
            TableColumn("lowest r", "number", f"Smallest r between any two (of the first {MEMBERS_LISTED}) members."),
        ],
        rows,
        len(clusters),
    )


def _pairs(table: PairTable, fired: NDArray[np.int64]) -> Table:
    columns = table.columns(fired)
    listed = (columns[key][:PAIRS_LISTED].tolist() for key in PAIR_COLUMNS)
    return Table(
        "pairs",
        "Pairs",
        "Correlated pairs and pairs with (anti)parallel decoder rows, strongest r first. Excluding position 0 unless "
        "stated otherwise.",
        list(PAIR_COLUMNS.values()),
        [list(row) for row in zip(*listed, strict=True)],
        len(table.r),
        more="pairs.parquet",
    )


def _only_with_bos(found: Found, counted: Counted, config: CorrelationConfig) -> Table:
    """The pairs that only position 0 makes look alike."""
    with_bos = found.with_bos
    order = np.argsort(-np.abs(with_bos.r), kind="stable")
    pairs, r_all = with_bos.pairs[order], with_bos.r[order]
    sums, both = counted.pairs.lookup(pairs[:, 0], pairs[:, 1])
    r = counted.rest.pearson(pairs[:, 0], pairs[:, 1], sums)
    fooled = np.flatnonzero(~(np.abs(r) > config.threshold))  # not "≤": r is NaN where a latent no longer varies
    rows = [[*pairs[k].tolist(), float(r_all[k]), float(r[k]), int(both[k])] for k in fooled[:BOS_PAIRS_LISTED]]
    return Table(
        "only_with_bos",
        "Correlated only through position 0",
        "Pairs beyond the threshold including position 0 that fall below it excluding position 0.",
        [
            TableColumn("i", "latent"),
            TableColumn("j", "latent"),
            TableColumn("r including position 0", "number"),
            TableColumn("r excluding it", "number"),
            TableColumn("rows with both, excluding position 0", "integer"),
        ],
        rows,
        len(fooled),
    )
