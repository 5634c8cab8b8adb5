"""The numbers of the correlation report: its lead, headline figures, columns of the table of latents, and terms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...result import Aim, Column, Figure
from .config import CorrelationConfig
from .counted import Counted
from .found import Found


def lead(found: Found, config: CorrelationConfig, *, bos: bool) -> str:
    """What was found, in two sentences, three where massive rows make pairs.

    Args:
        bos: sequences begin with a BOS; without one the state at position 0 is not the same in all of them.
    """
    rest, only_bos, n_clusters = found.rest, found.n_only_with_bos, len(found.clusters)
    first = (
        f"Excluding position 0, {rest.n_above:,} of {rest.n_pairs:,} pairs of latents correlate beyond "
        f"{config.threshold:g}; including it, {found.with_bos.n_above:,} would"
    )
    if only_bos:
        shared = "the constant vector at" if bos else "their firing at"
        first += f", {only_bos:,} of which share little but {shared} the start of every sequence"
    scored = int(found.scored.sum())
    second = (
        f" {len(found.in_cluster):,} of {scored:,} scored latents have a duplicate, in {n_clusters:,} clusters."
        if n_clusters
        else f" None of the {scored:,} scored latents has a duplicate."
    )
    third = (
        f" Excluding massive rows too, {found.ordinary.n_above:,} pairs do."
        if found.ordinary is not None and found.ordinary.n_above != rest.n_above
        else ""
    )
    return first + "." + second + third


def figures(found: Found, config: CorrelationConfig) -> list[Figure]:
    """Correlated pairs, nearest latents, duplicates."""
    return [*_pair_figures(found, config), *_cluster_figures(found, config)]


def _pair_figures(found: Found, config: CorrelationConfig) -> list[Figure]:
    rest, with_bos, null, theta = found.rest, found.with_bos, found.null, f"{config.threshold:g}"
    ordinary = found.ordinary
    return [
        Figure(
            "n_pairs_above",
            f"pairs with |r| > {theta}",
            rest.n_above,
            f"Pairs of latents whose token-aligned activations correlate beyond {theta} (each fires on ≥ "
            f"{config.min_fired} rows, both together on ≥ {config.min_both}).",
            format="integer",
            with_bos=with_bos.n_above,
            without_massive=None if ordinary is None else ordinary.n_above,
            null=found.chance,
            better="lower",
            short="pairs",
            aim=Aim(0, "0"),
            terminal=True,
            before_after=True,
            sweep=True,
            show_twin=True,
        ),
        Figure(
            "largest_r",
            "largest r",
            _largest(rest.nearest_r),
            "The largest r of any pair of scored latents.",
            with_bos=_largest(with_bos.nearest_r),
            without_massive=None if ordinary is None else _largest(ordinary.nearest_r),
            null=_largest(null.nearest_r),
            better="lower",
            aim=Aim(config.threshold, f"≤ {theta}"),
            before_after=True,
        ),
        Figure(
            "mean_max_r",
            "mean nearest r",
            _mean(rest.nearest_r),
            "Mean over latents of the largest r with any other latent.",
            with_bos=_mean(with_bos.nearest_r),
            without_massive=None if ordinary is None else _mean(ordinary.nearest_r),
            null=_mean(null.nearest_r),
            better="lower",
            before_after=True,
            sweep=True,
        ),
    ]


def _cluster_figures(found: Found, config: CorrelationConfig) -> list[Figure]:
    return [
        Figure(
            "n_in_clusters",
            "latents in duplicate clusters",
            len(found.in_cluster),
            f"Latents with at least one duplicate: r ≥ {config.threshold:g}, or decoder cosine ≥ "
            f"{config.cos_duplicate:g} and Jaccard ≥ {config.jaccard_duplicate:g}, excluding position 0.",
            format="integer",
            better="lower",
            before_after=True,
        ),
        Figure(
            "n_clusters",
            "duplicate clusters",
            len(found.clusters),
            "Connected components of the graph of duplicates.",
            format="integer",
            better="lower",
        ),
    ]


def columns(found: Found) -> list[Column]:
    """Each latent's nearest r and its cluster."""
    in_cluster, n_latents = found.in_cluster, len(found.scored)
    cluster = np.array([in_cluster.get(i, np.nan) for i in range(n_latents)], np.float64)
    return [
        Column("max_r", "max r", "Largest r with another latent, excluding position 0.", found.rest.nearest_r),
        Column(
            "max_r_with_bos",
            "max r incl. pos. 0",
            "The same including position 0.",
            found.with_bos.nearest_r,
            shown=False,
        ),
        Column(
            "cluster",
            "cluster",
            "Number of its duplicate cluster, 0 is the largest.",
            cluster,
            format="integer",
            without="none",
        ),
    ]


def data(found: Found, counted: Counted, config: CorrelationConfig) -> dict[str, Any]:
    """Further plain data for report.json."""
    rest, null, table, sorted_top = found.rest, found.null, found.table, found.sorted_top
    kinds = {str(kind): int(n) for kind, n in zip(*np.unique(table.kind, return_counts=True), strict=True)}
    return {
        "threshold": config.threshold,
        "rows": counted.rest.rows,
        "rows_at_position_0": counted.first.rows,
        "massive_rows": counted.massive.rows,
        "scored_latents": int(found.scored.sum()),
        "scored_pairs": rest.n_pairs,
        "n_pairs_only_with_bos": found.n_only_with_bos,
        "kinds": kinds,
        "null": {"latents": len(counted.null_ids), "pairs": null.n_pairs, "above": null.n_above},
        "sorted_top": {
            "length": config.sorted_top,
            "median": float(np.median(sorted_top.observed)) if len(sorted_top.observed) else None,
            "null_median": float(np.median(sorted_top.null)),
        },
        "clusters": [{"members": list(c.members), "weakest_edge": list(c.weakest)} for c in found.clusters],
        "pairs_listed": len(table.r),
    }


def definitions(config: CorrelationConfig) -> list[tuple[str, str]]:
    """The terms of this report."""
    theta, duplicate = f"{config.threshold:g}", f"{config.cos_duplicate:g}"
    return [
        (
            "Pearson r",
            "Correlation of two latents' activations over the same tokens, zeros included, from exact float64 sums.",
        ),
        (
            "Excluding position 0",
            "The first row of every sequence, and any other BOS row, does not count: attention is causal, so with a "
            "BOS the model's state there is one constant vector, and every copy of it would count as evidence.",
        ),
        (
            "Shuffled null",
            "The rows of one latent of each pair are permuted within each shard (excluding position 0). What remains "
            "is chance.",
        ),
        ("Jaccard", "Rows on which both fire, divided by rows on which at least one does."),
        (
            "Kinds of pairs",
            f"structural: r > {theta} and decoder cosine ≥ {config.cos_structural:g}. functional: r > {theta}, cosine "
            f"below that. split: cosine ≥ {duplicate}, |r| < {config.split_r:g}. antipodal: cosine ≤ −{duplicate}. "
            f"parallel: cosine ≥ {duplicate}, r in between. anticorrelated: r < −{theta}.",
        ),
        (
            "Duplicate",
            f"r ≥ {theta}, or decoder cosine ≥ {duplicate} and Jaccard ≥ {config.jaccard_duplicate:g}.",
        ),
    ]


def _largest(values: NDArray[np.floating]) -> float | None:
    return float(np.nanmax(values)) if np.isfinite(values).any() else None


def _mean(values: NDArray[np.floating]) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
