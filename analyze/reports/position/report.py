"""Position and BOS bias: where in the sequence each latent fires.

Position 0 is a bin of its own; the other positions are cut into ten equal bins. Every measure has a null, every test is
corrected for the number of latents (Benjamini–Hochberg) and must also pass an effect gate, and a latent that fires too
rarely is marked instead of scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ....shared.cache import Cache
from ....shared.codes.parallel import over_latents
from ....shared.codes.sparse import SparseCodes
from ...result import Aim, Chart, Column, Figure, ReportResult, Series, Table, TableColumn, show
from ...stream.batches import ShardRows, StreamBatch
from ...stream.keep import Keeper
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .kernels import by_bin, shifted_bins
from .scores import LEFT_OUT, PositionScores, coarse_bins, kept_first, profile_bins, score, shift_slots


@dataclass(frozen=True, kw_only=True)
class PositionConfig(ReportConfig):
    """Where in the sequence latents fire."""

    kind: Literal["position"] = "position"
    bins: int = 10
    """Equal bins of the positions after 0."""
    min_fired: int = 50
    """Latents that fire on fewer rows are marked, not scored."""
    top: int = 100
    """Top activations whose share of position 0 is reported."""
    context: int = 20
    """Tokens ahead of the peak that must agree for two contexts to be the same one."""
    q: float = 0.01
    """False discovery rate of the tests."""
    bos_share: float = 0.2
    """Effect gate: a BOS-biased latent has a larger share of its firings at position 0 than this …"""
    bos_enrichment: float = 5.0
    """… and fires there this many times as often as the number of rows suggests."""
    bin_share: float = 0.5
    """Effect gate: a position-biased latent has a larger share of its other firings in one of the bins than this."""
    shifts: int = 200
    """Random circular shifts within every sequence: the null of mutual information."""

    def __post_init__(self) -> None:
        if self.bins < 2 or self.top < 1 or self.min_fired < 1 or self.shifts < 2:
            raise ValueError("bins and shifts are at least 2, top and min_fired at least 1")
        if self.shifts * (self.bins + 1) >= LEFT_OUT:
            raise ValueError(f"shifts · (bins + 1) must stay below {LEFT_OUT}")


MAX_BOS_SHARE = 0.2
"""Share of the top activations at position 0 that training against duplicates is to stay below."""


class Position(Report[PositionConfig]):
    """Firings by position."""

    config_class: ClassVar[type[ReportConfig]] = PositionConfig
    title: ClassVar[str] = "Position and BOS bias"

    def __init__(self, config: PositionConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        n = subject.n_latents
        self.profile_of = profile_bins(subject.n_positions)
        self.n_profile = int(self.profile_of[-1]) + 1
        self.coarse_of = coarse_bins(self.n_profile, config.bins)
        self.n_bins = int(self.coarse_of[-1]) + 1
        self.rows = np.zeros(self.n_profile, np.int64)
        self.counts = np.zeros((n, self.n_profile), np.int64)
        self.sums = np.zeros((n, self.n_profile))
        self.shifted = np.zeros((n, config.shifts * (self.n_bins - 1)), np.int32)
        self.shifted_all = np.zeros((n, config.shifts * self.n_bins), np.int32)
        self.top = Keeper(n, config.top)
        self.top_distinct = Keeper(n, config.top, distinct=True, context=config.context)

    def update(self, batch: StreamBatch) -> None:
        codes, rows = batch.codes, batch.rows
        starts, local, _ = codes.by_latent
        values = codes.latent_values
        bin_of = np.where(rows.keep, self.profile_of[rows.position], -1).astype(np.int32)
        self.rows += np.bincount(bin_of[rows.keep], minlength=self.n_profile)
        work = codes.fired + 1

        def count(first: int, stop: int) -> None:
            by_bin(starts, local, values, bin_of, self.counts, self.sums, first, stop)

        over_latents(count, work)
        self._shift(codes, rows)
        self.top.add(codes, rows)
        self.top_distinct.add(codes, rows)

    def _shift(self, codes: SparseCodes, rows: ShardRows) -> None:
        """Count the firings of `shifts` replicates, in each of which every sequence is rotated by its own random
        amount.
        """
        starts, local, _ = codes.by_latent
        to_bin, shifts = self.coarse_of[self.profile_of], self.config.shifts
        for skip, counts in ((1, self.shifted), (0, self.shifted_all)):
            key = ("shifts", shifts, skip, self.n_bins, self.subject.seed)
            rng = np.random.default_rng((self.subject.seed, rows.shard, skip))
            slot = rows.once(key, partial(shift_slots, rows, shifts, skip, to_bin, self.n_bins - skip, rng))

            def count(
                first: int, stop: int, slot: NDArray[np.uint16] = slot, counts: NDArray[np.int32] = counts
            ) -> None:
                shifted_bins(starts, local, slot, counts, first, stop)

            over_latents(count, codes.fired)

    def merge(self, other: Self) -> None:
        self.rows += other.rows
        self.counts += other.counts
        self.sums += other.sums
        self.shifted += other.shifted
        self.shifted_all += other.shifted_all
        self.top.merge(other.top)
        self.top_distinct.merge(other.top_distinct)

    def finalise(self) -> ReportResult:
        return _result(self, score(self))


def _result(report: Position, s: PositionScores) -> ReportResult:
    config, cache = report.config, report.subject.cache
    base = float(s.bin_rows[0] / max(1, s.bin_rows.sum()))
    top, top_distinct = _pooled(report.top, cache), _pooled(report.top_distinct, cache)
    alive = int((s.bins.sum(axis=1) > 0).sum())
    low = alive - int(s.scored.sum())
    figures = [
        Figure(
            "bos_share_top",
            f"position 0 among top-{config.top} activations",
            top,
            f"Share of all latents' {config.top} largest activations that lie at position 0, repeats included.",
            "percent",
            null=base,
            better="lower",
            short="pos. 0 in top",
            aim=Aim(MAX_BOS_SHARE, f"≤ {show(MAX_BOS_SHARE, 'percent')}"),
            terminal=True,
            before_after=True,
            sweep=True,
        ),
        Figure(
            "bos_share_top_distinct",
            "the same, identical contexts once",
            top_distinct,
            f"As before, with each context (the peak token and the {config.context} ahead of it) counted once per "
            f"latent.",
            "percent",
            null=base,
            better="lower",
            short="distinct",
            terminal=True,
            before_after=True,
        ),
        Figure(
            "n_bos_biased",
            "BOS-biased latents",
            int(s.bos.sum()),
            f"Latents with > {config.bos_share:.0%} of their firings at position 0, > {config.bos_enrichment:g} "
            f"times the base rate, "
            f"exact binomial test with q < {config.q:g}.",
            "integer",
            better="lower",
            before_after=True,
        ),
        Figure(
            "n_position_biased",
            "position-biased latents",
            int(s.biased.sum()),
            f"Latents with > {config.bin_share:.0%} of their firings after position 0 in one of {report.n_bins - 1} "
            f"equal bins, mutual "
            f"information beyond circular shifts with q < {config.q:g}. Position 0 plays no part.",
            "integer",
            better="lower",
            before_after=True,
        ),
        Figure(
            "mi_excess",
            "mean information about position (bits)",
            _mean(s.mi),
            f"Mutual information of firing and position bin, minus the mean of {config.shifts} circular shifts "
            f"within sequences.",
            with_bos=_mean(s.mi_all),
            null=0.0,
            better="lower",
            in_summary=False,
        ),
    ]
    lead = (
        f"{show(top, 'percent') if top is not None else 'None'} of the top activations lie at position 0, which holds "
        f"{show(base, 'percent')} of the rows"
        + (f" ({show(top_distinct, 'percent')} once identical contexts count once)" if top_distinct is not None else "")
        + f". {int(s.bos.sum()):,} of {int(s.scored.sum()):,} scored latents are locked to position 0, "
        f"{int(s.biased.sum()):,} to another stretch of the sequence; {low:,} fire too rarely to be scored."
    )
    verdict = _verdicts(s, alive_counts=s.bins.sum(axis=1))
    return ReportResult(
        "position",
        report.title,
        lead,
        figures,
        _charts(report, s),
        _tables(s),
        [
            Column(
                "position", "position", "BOS, position, none (neither), rare (not scored) or dead.", verdict, "text"
            ),
            Column("bos_share", "at pos. 0", "Share of its firings at position 0.", s.share, "percent"),
            Column(
                "bos_share_top",
                f"pos. 0 in top {config.top}",
                "Share of its top activations at position 0, raw.",
                s.top,
                "percent",
            ),
            Column(
                "bos_share_top_distinct",
                "… distinct",
                "The same with identical contexts once.",
                s.top_distinct,
                "percent",
                shown=False,
            ),
            Column(
                "bos_enrichment",
                "pos. 0 enrichment",
                "(n_i0/n_i) / (N_0/N).",
                s.enrichment,
                shown=False,
            ),
            Column("position_kl", "position KL", "Bits from the base rate, position 0 left out.", s.kl, shown=False),
            Column(
                "position_mi",
                "position MI",
                "Mutual information with position beyond circular shifts, bits, position 0 left out.",
                s.mi,
                shown=False,
            ),
            Column(
                "spearman",
                "Spearman",
                "ρ of mean activation with position, position 0 left out.",
                s.spearman,
                shown=False,
            ),
        ],
        {
            "rows": int(s.bin_rows.sum()),
            "base_rate": base,
            "bins": {"rows": s.bin_rows, "edges": _edges(report)},
            "scored": int(s.scored.sum()),
            "not_scored": low,
            "dead": len(s.scored) - alive,
        },
        _panel(report, s),
        {
            "position": {
                "latent": np.arange(len(s.scored)),
                "fired": s.bins.sum(axis=1),
                "bos_share": s.share,
                "bos_enrichment": s.enrichment,
                "bos_p": s.p,
                "bos_q": s.q,
                "bos_biased": s.bos,
                f"bos_share_top{config.top}": s.top,
                f"bos_share_top{config.top}_distinct": s.top_distinct,
                "kl": s.kl,
                "kl_with_bos": s.kl_all,
                "mi_excess": s.mi,
                "mi_excess_with_bos": s.mi_all,
                "mi_q": s.mi_q,
                "largest_bin": s.biggest_bin,
                "largest_bin_share": s.biggest,
                "position_biased": s.biased,
                "spearman": s.spearman,
                "spearman_with_bos": s.spearman_all,
            }
        },
        _definitions(config),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _pooled(keeper: Keeper, cache: Cache) -> float | None:
    kept = int(keeper.kept.sum())
    return int(kept_first(keeper, cache).sum()) / kept if kept else None


def _verdicts(s: PositionScores, alive_counts: NDArray[np.int64]) -> list[str]:
    words = np.select(
        [alive_counts == 0, ~s.scored, s.bos & s.biased, s.bos, s.biased],
        ["dead", "rare", "BOS + position", "BOS", "position"],
        "none",
    )
    return [str(word) for word in words]


def _edges(report: Position) -> list[str]:
    """Names of the bins: "0", "1–7", …"""
    names = []
    coarse = report.coarse_of[report.profile_of]
    for b in range(report.n_bins):
        inside = np.flatnonzero(coarse == b)
        names.append(str(inside[0]) if len(inside) == 1 else f"{inside[0]}–{inside[-1]}")
    return names


def _charts(report: Position, s: PositionScores) -> list[Chart]:
    names = _edges(report)
    n = s.bins.sum(axis=1)
    shares = s.bins[n > 0] / n[n > 0][:, None]
    base = s.bin_rows / max(1, s.bin_rows.sum())
    edges = np.linspace(0, 1, 21)

    def histogram(values: NDArray[np.float64]) -> list[int]:
        counts: list[int] = np.histogram(values[np.isfinite(values)], edges)[0].tolist()
        return counts

    total = report.counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        per_row = np.where(report.rows > 0, total / report.rows, np.nan)
    positions = np.array([np.flatnonzero(report.profile_of == b)[0] for b in range(report.n_profile)])
    charts = [
        Chart(
            "firing_share",
            "Where latents fire",
            "Mean over latents of the share of their firings in each stretch of the sequence; position 0 is a bin of "
            "its own. "
            "A latent without preference follows the rows.",
            names,
            [
                Series("mean share of a latent's firings", shares.mean(axis=0).tolist() if len(shares) else []),
                Series("share of rows", base.tolist(), "null"),
            ],
            "position in the sequence",
            "share",
        ),
        Chart(
            "bos_share_top",
            f"Position 0 among each latent's top {report.config.top}",
            "How many latents have what share of their top activations at position 0. All rows at position 0 carry "
            "the same "
            "vector, so repeats inflate the raw share.",
            edges.round(3).tolist(),
            [
                Series("raw", histogram(s.top), "with_bos"),
                Series("identical contexts once", histogram(s.top_distinct)),
            ],
            "share at position 0",
            "latents",
            log_y=True,
        ),
    ]
    if np.nanmax(per_row, initial=0) > 1.02 * np.nanmin(
        per_row, initial=np.inf
    ):  # TopK fires the same number everywhere
        charts.append(
            Chart(
                "firings_by_position",
                "Active latents by position",
                "Mean number of latents that fire on a row at each position.",
                positions.tolist(),
                [Series("active latents per row", per_row.tolist())],
                "position in the sequence",
                "active latents",
                kind="lines",
            )
        )
    return charts


def _tables(s: PositionScores) -> list[Table]:
    fired = s.bins.sum(axis=1)
    bos = np.flatnonzero(s.bos)
    bos = bos[np.argsort(-s.share[bos], kind="stable")]
    biased = np.flatnonzero(s.biased)
    biased = biased[np.argsort(-s.mi[biased], kind="stable")]
    return [
        Table(
            "bos_biased",
            "BOS-biased latents",
            "Latents that fire at position 0 far beyond the base rate.",
            [
                TableColumn("latent", "latent"),
                TableColumn("fires on rows", "integer"),
                TableColumn("share at position 0", "percent"),
                TableColumn("enrichment", "number", "(n_i0/n_i) / (N_0/N)"),
                TableColumn("q", "probability", "Exact binomial test, Benjamini–Hochberg."),
                TableColumn("share in its top", "percent", "Raw."),
                TableColumn("… identical contexts once", "percent"),
            ],
            [
                [int(i), int(fired[i]), s.share[i], s.enrichment[i], s.q[i], s.top[i], s.top_distinct[i]]
                for i in bos[:100]
            ],
            len(bos),
            "position.parquet",
        ),
        Table(
            "position_biased",
            "Position-biased latents",
            "Latents with most of their other firings in one stretch of the sequence. Position 0 left out.",
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
            [
                [
                    int(i),
                    int(fired[i] - s.bins[i, 0]),
                    int(s.biggest_bin[i]),
                    s.biggest[i],
                    s.mi[i],
                    s.mi_q[i],
                    s.kl[i],
                    s.spearman[i],
                ]
                for i in biased[:100]
            ],
            len(biased),
            "position.parquet",
        ),
    ]


def _panel(report: Position, s: PositionScores) -> Any:
    names = _edges(report)
    base = (s.bin_rows / max(1, s.bin_rows.sum())).round(5).tolist()

    def panel(latent: int) -> list[dict[str, Any]]:
        n = int(s.bins[latent].sum())
        if n == 0:
            return []
        note = f"{n:,} firings" if s.scored[latent] else f"only {n:,} firings: not scored"
        return [
            {
                "type": "chart",
                "title": "Where it fires",
                "note": note,
                "x": names,
                "series": [
                    {"name": "its firings", "role": "data", "y": (s.bins[latent] / n).round(5).tolist()},
                    {"name": "all rows", "role": "null", "y": base},
                ],
                "x_label": "position",
                "y_label": "share",
            }
        ]

    return panel


def _definitions(config: PositionConfig) -> list[tuple[str, str]]:
    return [
        (
            "BOS bias",
            f"Position 0 is over-represented: share of firings > {config.bos_share:.0%}, enrichment "
            f"(n_i0/n_i)/(N_0/N) > "
            f"{config.bos_enrichment:g}, and an exact binomial test against the base rate N_0/N with "
            f"Benjamini–Hochberg q < {config.q:g}.",
        ),
        (
            "Position bias",
            f"Position 0 left out: more than {config.bin_share:.0%} of the firings in one of {config.bins} equal "
            f"bins, and mutual "
            f"information beyond {config.shifts} circular shifts within sequences (gamma fitted to the shifts, q < "
            f"{config.q:g}).",
        ),
        (
            "Circular shift",
            "Every sequence is rotated by its own random amount: bursts stay, the link to position goes.",
        ),
        (
            "KL",
            "Kullback–Leibler divergence of a latent's firings over bins from the rows', Miller–Madow corrected, in "
            "bits.",
        ),
        (
            "Not scored",
            f"Latents that fire on fewer than {config.min_fired} rows: any figure of theirs would be noise.",
        ),
        (
            "Identical contexts",
            f"The same peak token with the same {config.context} tokens ahead of it. They repeat in any corpus, "
            f"always at position 0.",
        ),
    ]
