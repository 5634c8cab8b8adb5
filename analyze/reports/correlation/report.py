"""Correlation: which latents fire together, over token-aligned activations, with and without position 0.

Pearson's r of latents i and j over N rows, from exact sums (analyze/pairs.py):

    r_ij = (N Σ z_i z_j − Σ z_i Σ z_j) / √((N Σ z_i² − (Σ z_i)²)(N Σ z_j² − (Σ z_j)²))

The residual at position 0 is one constant vector (attention is causal), so two latents that share nothing but BOS can
reach r ≈ 1 over all rows. The main figures therefore leave position 0 out, and the figure with it stands beside each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.moments import CodeMoments
from ...result import Aim, Chart, Column, Figure, ReportResult, Series, Table, TableColumn
from ...stream.batches import StreamBatch
from ...stream.keep import Keeper
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .clusters import Cluster, clusters
from .pair_sums import FirstRows, PairSums
from .scan import BINS, Neighbours, PairTable, Scan, null_sample, scan, sorted_top_correlation


@dataclass(frozen=True, kw_only=True)
class CorrelationConfig(ReportConfig):
    """Which latents fire together."""

    kind: Literal["correlation"] = "correlation"
    threshold: float = 0.8
    """|r| above which a pair is reported; also the r of a duplicate."""
    min_fired: int = 50
    """Latents that fire on fewer rows are not scored."""
    min_both: int = 10
    """Pairs that fire together on fewer rows are not reported."""
    neighbours: int = 20
    """Most correlated latents kept per latent."""
    cos_structural: float = 0.5
    """Decoder cosine from which a correlated pair counts as structural (the same direction), below it as functional."""
    cos_duplicate: float = 0.8
    """Decoder cosine from which a pair is a duplicate if its Jaccard index is high too, and a split if r is near 0."""
    jaccard_duplicate: float = 0.5
    """Jaccard index that a pair of nearly parallel latents needs to count as a duplicate."""
    split_r: float = 0.2
    """|r| below which two nearly parallel latents count as a split feature."""
    null_latents: int = 2048
    """Latents in the shuffled null; more than that are sampled."""
    sorted_top: int = 3
    """Length of the sorted lists in the mistaken "correlation" that is shown once, beside its own null."""
    max_pairs: int = 1_000_000
    """Pairs kept in the Parquet table; all are counted."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is an |r| between 0 and 1, not {self.threshold}")
        if min(self.min_fired, self.min_both, self.neighbours, self.max_pairs) < 1 or self.sorted_top < 2:
            raise ValueError("min_fired, min_both, neighbours and max_pairs are at least 1, sorted_top at least 2")


WORTH_SHOWING = 0.05
"""Least r of a neighbour in a latent's panel; neighbours.parquet has them all."""


class Correlation(Report[CorrelationConfig]):
    """All pairs of latents."""

    config_class: ClassVar[type[ReportConfig]] = CorrelationConfig
    title: ClassVar[str] = "Correlation"

    def __init__(self, config: CorrelationConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        n = subject.n_latents
        self.rest = self.first = CodeMoments.zeros(n)
        self.pairs = PairSums(n, subject.device)
        self.first_rows = FirstRows(n)
        self.null_ids = null_sample(n, config.null_latents)
        self.null_of = np.full(n, -1, np.int32)
        self.null_of[self.null_ids] = np.arange(len(self.null_ids), dtype=np.int32)
        self.null = PairSums(len(self.null_ids), subject.device)
        self.tops = Keeper(n, config.sorted_top)

    def update(self, batch: StreamBatch) -> None:
        rest, first = batch.codes.rows(batch.rows.rest), batch.codes.rows(batch.rows.first)
        self.rest += rest.moments
        self.first += first.moments
        self.pairs.add(rest)
        self.first_rows.add(first)
        shuffle = np.random.default_rng((self.subject.seed, batch.rows.shard)).permutation(rest.n_rows)
        self.null.add(rest.columns(self.null_of, len(self.null_ids)), shuffle)
        self.tops.add(batch.codes, batch.rows)

    def merge(self, other: Self) -> None:
        self.rest += other.rest
        self.first += other.first
        self.pairs.merge(other.pairs)
        self.first_rows.merge(other.first_rows)
        self.null.merge(other.null)
        self.tops.merge(other.tops)

    def finalise(self) -> ReportResult:
        config, everything = self.config, self.rest + self.first
        rest = scan(self.pairs.blocks(), self.rest, config, config.neighbours)
        with_bos = scan(self.first_rows.with_rest(self.pairs), everything, config, 1)
        null = scan(self.null.blocks(), self.rest.take(self.null_ids), config, 1)  # a permutation leaves the moments
        table = PairTable.of(rest, self.pairs, self.first_rows, self.rest, self.first, self.subject.geometry, config)
        found = clusters(table.ids[table.duplicate], table.r[table.duplicate])
        return _result(self, rest, with_bos, null, table, found)


def _result(
    report: Correlation, rest: Scan, with_bos: Scan, null: Scan, table: PairTable, found: list[Cluster]
) -> ReportResult:
    config, fired = report.config, report.rest.n
    scored = fired >= config.min_fired
    chance = null.n_above / null.n_pairs * rest.n_pairs if null.n_pairs else None
    size = np.int64(report.subject.n_latents)
    kept = {int(a) * int(size) + int(b) for a, b in rest.pairs}
    only_bos = sum(int(a) * int(size) + int(b) not in kept for a, b in with_bos.pairs)
    nearest = np.where(rest.near_r[:, 0] > -2, rest.near_r[:, 0], np.nan)
    nearest_bos = np.where(with_bos.near_r[:, 0] > -2, with_bos.near_r[:, 0], np.nan)
    in_cluster = {latent: c for c, cluster in enumerate(found) for latent in cluster.members}
    kinds = {str(kind): int(n) for kind, n in zip(*np.unique(table.kind, return_counts=True), strict=True)}
    sorted_r, sorted_null = _sorted_top(report)
    theta = f"{config.threshold:g}"
    figures = [
        Figure(
            "n_pairs_above",
            f"pairs with |r| > {theta}",
            rest.n_above,
            f"Pairs of latents whose token-aligned activations correlate beyond {theta} (each fires on ≥ "
            f"{config.min_fired} "
            f"rows, both together on ≥ {config.min_both}).",
            "integer",
            with_bos=with_bos.n_above,
            null=chance,
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
            float(np.nanmax(nearest)) if np.isfinite(nearest).any() else None,
            "The largest r of any pair of scored latents.",
            with_bos=float(np.nanmax(nearest_bos)) if np.isfinite(nearest_bos).any() else None,
            null=float(null.near_r.max()) if null.near_r.max(initial=-2) > -2 else None,
            better="lower",
            aim=Aim(config.threshold, f"≤ {theta}"),
            before_after=True,
        ),
        Figure(
            "mean_max_r",
            "mean nearest r",
            _mean(nearest),
            "Mean over latents of the largest r with any other latent.",
            with_bos=_mean(nearest_bos),
            null=_mean(np.where(null.near_r[:, 0] > -2, null.near_r[:, 0], np.nan)),
            better="lower",
            before_after=True,
            sweep=True,
        ),
        Figure(
            "n_in_clusters",
            "latents in duplicate clusters",
            len(in_cluster),
            f"Latents with at least one duplicate: r ≥ {theta}, or decoder cosine ≥ {config.cos_duplicate:g} and "
            f"Jaccard ≥ "
            f"{config.jaccard_duplicate:g}. Without position 0.",
            "integer",
            better="lower",
            before_after=True,
        ),
        Figure(
            "n_clusters",
            "duplicate clusters",
            len(found),
            "Connected components of the graph of duplicates.",
            "integer",
            better="lower",
        ),
    ]
    lead = _lead(rest, with_bos, only_bos, theta, found, len(in_cluster), int(scored.sum()))
    near = Neighbours.of(rest, report.pairs, report.rest, report.subject.geometry)
    return ReportResult(
        "correlation",
        report.title,
        lead,
        figures,
        [_histogram(rest, with_bos, null, config), _sorted_chart(sorted_r, sorted_null, config)],
        [_cluster_table(report, found), _pair_table(table, fired), _bos_table(report, rest, with_bos)],
        [
            Column("max_r", "max r", "Largest r with another latent, position 0 left out.", nearest),
            Column(
                "max_r_with_bos", "max r incl. pos. 0", "The same with position 0 counted in.", nearest_bos, shown=False
            ),
            Column(
                "cluster",
                "cluster",
                "Number of its duplicate cluster, 0 is the largest.",
                np.array([in_cluster.get(i, np.nan) for i in range(report.subject.n_latents)], np.float64),
                "integer",
                without="none",
            ),
        ],
        {
            "threshold": config.threshold,
            "rows": report.rest.rows,
            "rows_at_position_0": report.first.rows,
            "scored_latents": int(scored.sum()),
            "scored_pairs": rest.n_pairs,
            "n_pairs_only_with_bos": only_bos,
            "kinds": kinds,
            "null": {"latents": len(report.null_ids), "pairs": null.n_pairs, "above": null.n_above},
            "sorted_top": {
                "length": config.sorted_top,
                "median": float(np.median(sorted_r)) if len(sorted_r) else None,
                "null_median": float(np.median(sorted_null)),
            },
            "clusters": [{"members": list(c.members), "weakest_edge": list(c.weakest)} for c in found],
            "pairs_listed": len(table.r),
        },
        _panel(near, found, in_cluster),
        {"pairs": table.columns(fired), "neighbours": near.columns()},
        _definitions(config),
    )


def _mean(values: NDArray[np.floating]) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _lead(
    rest: Scan, with_bos: Scan, only_bos: int, theta: str, found: list[Cluster], members: int, scored: int
) -> str:
    first = (
        f"Without position 0, {rest.n_above:,} of {rest.n_pairs:,} pairs of latents correlate beyond {theta}; with it, "
        f"{with_bos.n_above:,} would"
    )
    if only_bos:
        first += f", {only_bos:,} of which share little but the constant vector at the start of every sequence"
    second = (
        f" {members:,} of {scored:,} scored latents have a duplicate, in {len(found):,} clusters."
        if found
        else f" None of the {scored:,} scored latents has a duplicate."
    )
    return first + "." + second


def _histogram(rest: Scan, with_bos: Scan, null: Scan, config: CorrelationConfig) -> Chart:
    def share(scanned: Scan) -> list[float | None]:
        return [n / scanned.n_pairs if n else None for n in scanned.histogram.tolist()]

    return Chart(
        "r_histogram",
        "Correlation of all pairs of latents",
        "Share of pairs by r (log scale). Shuffled: rows of one latent of each pair permuted, so that only chance "
        "correlates.",
        np.linspace(-1, 1, BINS + 1).round(4).tolist(),
        [
            Series("with position 0", share(with_bos), "with_bos"),
            Series("without position 0", share(rest)),
            Series("shuffled null", share(null), "null"),
        ],
        "Pearson r",
        "share of pairs",
        log_y=True,
        marks=[(config.threshold, "threshold")],
    )


def _sorted_top(report: Correlation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(the mistaken figure over pairs of latents, its null from independent exponentials)."""
    full = np.flatnonzero(report.tops.kept >= report.config.sorted_top)[:1000]
    rng = np.random.default_rng(report.subject.seed)
    exponentials = -np.sort(-rng.exponential(size=(1000, report.config.sorted_top)), axis=1)
    return (
        sorted_top_correlation(report.tops.value[full].astype(np.float64)),
        sorted_top_correlation(exponentials),
    )


def _sorted_chart(observed: NDArray[np.float64], null: NDArray[np.float64], config: CorrelationConfig) -> Chart:
    edges = np.linspace(-1, 1, 81)

    def share(values: NDArray[np.float64]) -> list[float]:
        counts = np.histogram(values, edges)[0]
        shares: list[float] = (counts / max(1, counts.sum())).tolist()
        return shares

    medians = [f"{np.median(v):.3f}" if len(v) else "–" for v in (observed, null)]
    return Chart(
        "sorted_top",
        f"Not a correlation: sorted top-{config.sorted_top} values",
        f'Older reports of "0.92–0.99 correlation" correlated each latent\'s {config.sorted_top} largest activations '
        f"after "
        f"sorting them. Sorted lists always agree: the median here is {medians[0]}, and {medians[1]} for independent "
        f"random "
        "numbers. It says nothing about latents; it is shown so that old figures can be understood.",
        edges.round(4).tolist(),
        [
            Series(f"pairs of these latents, median {medians[0]}", share(observed)),
            Series(f"independent exponentials, median {medians[1]}", share(null), "null"),
        ],
        "correlation of sorted lists",
        "share of pairs",
    )


def _cluster_table(report: Correlation, found: list[Cluster]) -> Table:
    rows: list[list[Any]] = []
    for c, cluster in enumerate(found[:200]):
        members = np.array(cluster.members[:40])
        a, b = np.triu_indices(len(members), 1)
        sums, _ = report.pairs.lookup(members[a], members[b])
        r = report.rest.pearson(members[a], members[b], sums)
        i, j, weakest = cluster.weakest
        rows.append([c, len(cluster.members), list(cluster.members[:40]), weakest, [i, j], float(np.nanmin(r))])
    return Table(
        "clusters",
        "Duplicate clusters",
        "Latents joined by duplicate pairs. The weakest link is the edge that holds the cluster together; the lowest "
        "r of any "
        "two members shows whether it is one thing or a chain.",
        [
            TableColumn("cluster", "integer"),
            TableColumn("size", "integer"),
            TableColumn("members", "latents"),
            TableColumn("weakest link r", "number", "Weakest edge of the maximum spanning tree."),
            TableColumn("between", "latents"),
            TableColumn("lowest r", "number", "Smallest r between any two (of the first 40) members."),
        ],
        rows,
        len(found),
    )


def _pair_table(table: PairTable, fired: NDArray[np.int64]) -> Table:
    columns = table.columns(fired)
    listed = 500
    keys = (
        "i",
        "j",
        "kind",
        "r",
        "r_with_bos",
        "decoder_cosine",
        "fired_both",
        "jaccard",
        "p_j_given_i",
        "p_i_given_j",
    )
    return Table(
        "pairs",
        "Pairs",
        "Correlated pairs and pairs with (anti)parallel decoder rows, strongest r first, all figures without "
        "position 0 unless "
        "they say otherwise.",
        [
            TableColumn("i", "latent"),
            TableColumn("j", "latent"),
            TableColumn("kind", "text", "structural, functional, split, antipodal, …: see the definitions."),
            TableColumn("r", "number", "Pearson r without position 0."),
            TableColumn("r with position 0", "number"),
            TableColumn("decoder cosine", "number"),
            TableColumn("rows with both", "integer"),
            TableColumn("Jaccard", "number", "Rows with both / rows with either."),
            TableColumn("P(j | i)", "number", "Share of i's rows on which j fires too."),
            TableColumn("P(i | j)", "number"),
        ],
        [list(row) for row in zip(*(columns[key][:listed].tolist() for key in keys), strict=True)],
        len(table.r),
        "pairs.parquet",
    )


def _bos_table(report: Correlation, rest: Scan, with_bos: Scan) -> Table:
    """The pairs that only position 0 makes look alike."""
    order = np.argsort(-np.abs(with_bos.r), kind="stable")
    pairs, r_all = with_bos.pairs[order], with_bos.r[order]
    sums, both = report.pairs.lookup(pairs[:, 0], pairs[:, 1])
    r = report.rest.pearson(pairs[:, 0], pairs[:, 1], sums)
    fooled = np.flatnonzero(~(np.abs(r) > report.config.threshold))
    rows = [[*pairs[k].tolist(), float(r_all[k]), float(r[k]), int(both[k])] for k in fooled[:100]]
    return Table(
        "only_with_bos",
        "Correlated only through position 0",
        "Pairs beyond the threshold over all rows that fall below it once position 0 is left out.",
        [
            TableColumn("i", "latent"),
            TableColumn("j", "latent"),
            TableColumn("r with position 0", "number"),
            TableColumn("r without", "number"),
            TableColumn("rows with both, without position 0", "integer"),
        ],
        rows,
        len(fooled),
    )


def _panel(near: Neighbours, found: list[Cluster], in_cluster: dict[int, int]) -> Any:
    def panel(latent: int) -> list[dict[str, Any]]:
        rows = [
            [int(other), *(round(float(value), 4) for value in values)]
            for other, *values in zip(
                *(a[latent] for a in (near.other, near.r, near.jaccard, near.p_other, near.cos)), strict=True
            )
            if other >= 0 and values[0] >= WORTH_SHOWING
        ]
        blocks: list[dict[str, Any]] = []
        if latent in in_cluster:
            cluster = found[in_cluster[latent]]
            blocks.append(
                {
                    "type": "latents",
                    "title": f"Duplicate cluster {in_cluster[latent]}",
                    "ids": [m for m in cluster.members if m != latent][:60],
                    "note": f"weakest link r = {cluster.weakest[2]:.3f}",
                }
            )
        if rows:
            blocks.append(
                {
                    "type": "table",
                    "title": "Fires together with",
                    "note": "without position 0",
                    "columns": [
                        ["latent", "latent"],
                        ["r", "number"],
                        ["Jaccard", "number"],
                        ["P(it | this)", "number"],
                        ["decoder cosine", "number"],
                    ],
                    "rows": rows,
                }
            )  # fmt: skip
        return blocks

    return panel


def _definitions(config: CorrelationConfig) -> list[tuple[str, str]]:
    return [
        ("Pearson r", "Correlation of two latents' activations over the same tokens, zeros included, from exact "
        "float64 sums."),
        (
            "Without position 0",
            "The first row of every sequence is left out: attention is causal, so the model's state there is one "
            "constant vector, "
            "and every copy of it would count as evidence.",
        ),
        (
            "Shuffled null",
            "The rows of one latent of each pair are permuted within each shard (position 0 left out). What remains "
            "is chance.",
        ),
        ("Jaccard", "Rows on which both fire, divided by rows on which at least one does."),
        (
            "Kinds of pairs",
            f"structural: r > {config.threshold:g} and decoder cosine ≥ {config.cos_structural:g}. functional: r > "
            f"{config.threshold:g}, cosine below that. split: cosine ≥ {config.cos_duplicate:g}, |r| < "
            f"{config.split_r:g}. antipodal: "
            f"cosine ≤ −{config.cos_duplicate:g}. parallel: cosine ≥ {config.cos_duplicate:g}, r in between. "
            f"anticorrelated: r < "
            f"−{config.threshold:g}.",
        ),
        (
            "Duplicate",
            f"r ≥ {config.threshold:g}, or decoder cosine ≥ {config.cos_duplicate:g} and Jaccard ≥ "
            f"{config.jaccard_duplicate:g}.",
        ),
    ]  # fmt: skip
