"""The coder as a whole: reconstruction, sparsity, dead and dense latents, geometry, use of nested groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ....shared.coders.ops import weighted_rows
from ...result import Chart, Column, Figure, ReportResult, Series, Table, TableColumn
from ...stream.batches import StreamBatch
from ...subject.geometry import BINS, random_geometry
from ...subject.subject import Subject
from ..base import Report, ReportConfig


@dataclass(frozen=True, kw_only=True)
class GlobalConfig(ReportConfig):
    """Reconstruction, sparsity, dead latents, geometry."""

    kind: Literal["global"] = "global"
    dense_above: float = 0.1
    """Firing rate (position 0 left out) above which a latent counts as ultra-dense."""

    def __post_init__(self) -> None:
        if not 0 < self.dense_above <= 1:
            raise ValueError(f"dense_above is a firing rate between 0 and 1, not {self.dense_above}")


class ReconstructionReport(Report[GlobalConfig]):
    """One coder against its target."""

    config_class: ClassVar[type[ReportConfig]] = GlobalConfig
    title: ClassVar[str] = "The coder as a whole"
    reconstructs: ClassVar[bool] = True

    def __init__(self, config: GlobalConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        ctx = subject.n_positions
        self.prefixes = subject.coder.prefixes or (subject.n_latents,)
        groups = len(self.prefixes)
        stats = (subject.trained_on or subject.cache).stats(subject.target)
        self.mean_rest = torch.from_numpy(stats.rest.mean).to(subject.device)
        self.mean_all = torch.from_numpy(stats.all.mean).to(subject.device)
        self.rows = np.zeros(ctx, np.int64)
        self.error = np.zeros((groups, ctx))
        self.variance_rest = np.zeros(ctx)
        self.variance_all = np.zeros(ctx)
        self.fired = np.zeros((2, subject.n_latents), np.int64)
        self.l0 = np.zeros((2, 1), np.int64)
        self.magnitude = np.zeros(subject.n_latents)

    def update(self, batch: StreamBatch) -> None:
        if batch.y is None or batch.y_hat is None:
            raise ValueError("the global report needs reconstructions")
        rows, codes = batch.rows, batch.codes
        position, keep = rows.position[rows.keep], rows.keep
        ctx = len(self.rows)
        self.rows += np.bincount(position, minlength=ctx)
        for g, errors in enumerate(self._errors(batch)):
            self.error[g] += np.bincount(position, errors[keep], ctx)
        y = batch.y.double()
        self.variance_rest += np.bincount(position, _row_squares(y - self.mean_rest)[keep], ctx)
        self.variance_all += np.bincount(position, _row_squares(y - self.mean_all)[keep], ctx)
        at_first = np.repeat(rows.first, codes.l0)
        n = self.fired.shape[1]
        self.fired[0] += np.bincount(codes.latents[at_first], minlength=n)
        self.fired[1] += np.bincount(codes.latents[~at_first], minlength=n)
        largest = max(self.l0.shape[1] - 1, int(codes.l0.max(initial=0)))
        if largest >= self.l0.shape[1]:
            self.l0 = np.pad(self.l0, ((0, 0), (0, largest + 1 - self.l0.shape[1])))
        self.l0[0] += np.bincount(codes.l0[rows.first], minlength=largest + 1)
        self.l0[1] += np.bincount(codes.l0[rows.rest], minlength=largest + 1)
        self.magnitude += np.bincount(codes.latents[~at_first], codes.values[~at_first].astype(np.float64), n)

    def _errors(self, batch: StreamBatch) -> list[NDArray[np.float64]]:
        """Squared error of every row [R] for each prefix of the dictionary, the whole one last."""
        assert batch.y is not None
        assert batch.y_hat is not None
        out = [_row_squares(batch.y.double() - batch.y_hat.double())]
        if len(self.prefixes) > 1:
            coder = self.subject.coder
            w_dec = (coder.w_dec.detach() * coder.target_scale).float().cpu()
            codes = batch.codes
            missing = torch.zeros_like(batch.y_hat, device="cpu")
            row = np.repeat(np.arange(codes.n_rows), codes.l0)
            # ŷ of a prefix is ŷ of the next one without the latents between.
            for low, high in zip(self.prefixes[-2::-1], self.prefixes[:0:-1], strict=True):
                inside = (codes.latents >= low) & (codes.latents < high)
                starts = np.searchsorted(row[inside], np.arange(codes.n_rows))
                missing += weighted_rows(
                    torch.from_numpy(codes.values[inside]),
                    torch.from_numpy(codes.latents[inside].astype(np.int64)),
                    w_dec,
                    offsets=torch.from_numpy(starts),
                )
                out.append(_row_squares(batch.y.double().cpu() - (batch.y_hat.cpu() - missing).double()))
        return out[::-1]

    def merge(self, other: Self) -> None:
        self.rows += other.rows
        self.error += other.error
        self.variance_rest += other.variance_rest
        self.variance_all += other.variance_all
        self.fired += other.fired
        width = max(self.l0.shape[1], other.l0.shape[1])
        self.l0, theirs = (np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (self.l0, other.l0))
        self.l0 = self.l0 + theirs
        self.magnitude += other.magnitude

    def finalise(self) -> ReportResult:
        return _result(self)

    @cached_property
    def fvu(self) -> float | None:
        """Position 0 left out; the variance is about the mean of those rows."""
        return _ratio(self.error[-1, 1:].sum(), self.variance_rest[1:].sum())

    @cached_property
    def fvu_with_bos(self) -> float | None:
        """All rows, the variance about the mean of all rows."""
        return _ratio(self.error[-1].sum(), self.variance_all.sum())


def _row_squares(x: torch.Tensor) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = x.square().sum(dim=1).cpu().numpy()
    return squares


def _ratio(a: float, b: float) -> float | None:
    return float(a / b) if b > 0 else None


def _result(report: ReconstructionReport) -> ReportResult:
    config, subject = report.config, report.subject
    n = subject.n_latents
    rows_rest, rows_all = int(report.rows[1:].sum()), int(report.rows.sum())
    fired_rest, fired_all = report.fired[1], report.fired.sum(axis=0)
    dead_rest, dead = int((fired_rest == 0).sum()), int((fired_all == 0).sum())
    density = fired_rest / max(1, rows_rest)
    dense = int((density > config.dense_above).sum())
    l0, l0_all = _mean_l0(report.l0[1]), _mean_l0(report.l0.sum(axis=0))
    geometry = subject.geometry
    random_max = random_geometry(n, subject.w_dec.shape[1], subject.seed)
    max_cos = geometry.max_cos
    alignment = _alignment(subject)
    figures = [
        Figure(
            "fvu",
            "FVU",
            report.fvu,
            "Fraction of variance unexplained, Σ‖y − ŷ‖² / Σ‖y − ȳ‖², ȳ the mean of the "
            f"{'training cache' if subject.trained_on else 'cache under analysis (the training cache is gone)'}. The "
            "mean alone scores 1 on the rows that it is of.",
            with_bos=report.fvu_with_bos,
            null=1.0,
            better="lower",
            terminal=True,
            before_after=True,
            sweep=True,
            show_twin=True,
        ),
        Figure(
            "l0",
            "L0",
            l0,
            "Mean number of latents that fire on a row.",
            with_bos=l0_all,
            terminal=True,
            before_after=True,
            sweep=True,
        ),
        Figure(
            "dead",
            "dead latents",
            dead_rest,
            f"Latents that fire on none of the {rows_rest:,} rows outside position 0 (with: on none of all rows).",
            "integer",
            with_bos=dead,
            better="lower",
            short="dead",
            terminal=True,
            before_after=True,
            sweep=True,
        ),
        Figure(
            "ultra_dense",
            "ultra-dense latents",
            dense,
            f"Latents that fire on more than {config.dense_above:.0%} of the rows.",
            "integer",
            with_bos=int((fired_all / max(1, rows_all) > config.dense_above).sum()),
            better="lower",
        ),
        Figure(
            "mean_max_cosine",
            "mean nearest decoder cosine",
            float(max_cos.mean()) if n > 1 and subject.w_dec.any() else None,  # a zero row has no direction
            "Mean over latents of the largest cosine of its decoder row with another one.",
            null=float(random_max.mean()) if n > 1 else None,
            better="lower",
            short="nearest cosine",
            before_after=True,
            sweep=True,
        ),
    ]
    if alignment is not None:
        figures.append(
            Figure(
                "encoder_decoder_cosine",
                "mean encoder–decoder cosine",
                float(alignment.mean()),
                "Mean cosine of a latent's encoder row and its decoder row (SAEs).",
                null=0.0,
                in_summary=False,
            )
        )
    groups = _groups(report, fired_rest)
    kind = "transcoder" if subject.coder.is_transcoder else "SAE"
    lead = (
        f"This {subject.coder.config.architecture} {kind} leaves {_percent(report.fvu)} of the variance unexplained "
        f"with "
        f"{l0:.1f} active latents per row, position 0 left out ({_percent(report.fvu_with_bos)} with it). "
        f"{dead_rest:,} of {n:,} "
        f"latents never fired on {rows_rest:,} rows, {dense:,} fire on more than {config.dense_above:.0%} of them."
        if l0 is not None
        else "No row was seen."
    )
    columns = [
        Column("cosine", "nearest cosine", "Largest cosine of its decoder row with another.", max_cos, shown=False),
        Column(
            "norm", "decoder norm", "Length of its decoder row.", np.linalg.norm(subject.w_dec, axis=1), shown=False
        ),
    ]
    if alignment is not None:
        columns.append(
            Column("alignment", "enc·dec", "Cosine of its encoder and decoder rows.", alignment, shown=False)
        )
    if len(report.prefixes) > 1:
        group = np.searchsorted(report.prefixes, np.arange(n), side="right") + 1
        columns.insert(
            0, Column("group", "group", "Nested group of the dictionary, 1 is the innermost.", group, "integer")
        )
    return ReportResult(
        "global",
        report.title,
        lead,
        figures,
        _charts(report, density, max_cos, random_max, alignment),
        [groups] if groups is not None else [],
        columns,
        {
            "rows": rows_rest,
            "rows_with_bos": rows_all,
            "latents": n,
            "source": subject.source,
            "target": subject.target,
            "architecture": subject.coder.config.architecture,
            "kind": kind,
            "l0_distribution": report.l0[1],
            "l0_distribution_at_position_0": report.l0[0],
            "pairs_with_close_decoder_rows": geometry.n_close,
        },
        _panel(subject),
        definitions=[
            (
                "FVU",
                "Σ‖y − ŷ‖² / Σ‖y − ȳ‖² in float64, ȳ per dimension from the training cache (where it is gone, from the "
                "one under analysis): the mean of its rows without position 0 for the figure without, of all rows for "
                "the figure with.",
            ),
            ("Dead", "A latent that never fired on the rows of this report. Few rows make many latents look dead."),
            (
                "Untrained control",
                "The same coder as the run's, as it was before the first training step, on the same rows.",
            ),
            ("Random directions", "The null of cosines: as many random unit vectors in as many dimensions."),
        ],
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _mean_l0(distribution: NDArray[np.int64]) -> float | None:
    rows = distribution.sum()
    return float((distribution * np.arange(len(distribution))).sum() / rows) if rows else None


def _alignment(subject: Subject) -> NDArray[np.float64] | None:
    """Cosine of encoder and decoder rows [F]; None for a transcoder, whose rows lie in different spaces."""
    if subject.coder.is_transcoder:
        return None
    a, b = subject.w_enc.astype(np.float64), subject.w_dec.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cos: NDArray[np.float64] = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    return cos


def _groups(report: ReconstructionReport, fired: NDArray[np.int64]) -> Table | None:
    if len(report.prefixes) < 2:
        return None
    bounds = (0, *report.prefixes)
    total = max(1, int(fired.sum()))
    rows = max(1, int(report.rows[1:].sum()))
    variance = report.variance_rest[1:].sum()
    listed = []
    for g, (low, high) in enumerate(pairwise(bounds)):
        part = fired[low:high]
        listed.append(
            [
                g + 1,
                high - low,
                int((part > 0).sum()),
                float(part.sum() / rows),
                float(part.sum() / total),
                _ratio(report.error[g, 1:].sum(), variance),
            ]
        )
    return Table(
        "groups",
        "Nested groups",
        "How the groups of the dictionary are used, and how well each prefix reconstructs alone. Position 0 left out.",
        [
            TableColumn("group", "integer"),
            TableColumn("latents", "integer"),
            TableColumn("alive", "integer"),
            TableColumn("active per row", "number"),
            TableColumn("share of firings", "percent"),
            TableColumn("FVU up to here", "number", "Reconstruction from this and all inner groups."),
        ],
        listed,
        len(listed),
    )


def _charts(
    report: ReconstructionReport,
    density: NDArray[np.float64],
    max_cos: NDArray[np.float32],
    random_max: NDArray[np.float32],
    alignment: NDArray[np.float64] | None,
) -> list[Chart]:
    with np.errstate(invalid="ignore", divide="ignore"):
        by_position = report.error[-1] / np.where(report.rows > 0, report.variance_all, np.nan)
    edges = np.linspace(-0.2, 1, 61)
    pairs = report.subject.geometry.histogram
    l0_edges, l0_counts = _l0_bars(report.l0[1])
    charts = [
        Chart(
            "fvu_by_position",
            "Unexplained variance by position",
            "FVU of the rows at each position, the variance about the mean of all rows. Position 0 is the first point.",
            list(range(len(by_position))),
            [Series("FVU", by_position.tolist())],
            "position in the sequence",
            "FVU",
            kind="lines",
        ),
        Chart(
            "l0",
            "Active latents per row",
            "Distribution of L0, position 0 left out.",
            l0_edges,
            [Series("rows", l0_counts)],
            "latents that fire on a row",
            "rows",
        ),
        Chart(
            "max_cosine",
            "Nearest decoder neighbour",
            "Each latent's largest decoder cosine with another one. Null: as many random directions in as many "
            "dimensions.",
            edges.round(3).tolist(),
            [
                Series("latents", _shares(max_cos, edges)),
                Series("random directions", _shares(random_max, edges), "null"),
            ],
            "largest cosine",
            "share of latents",
        ),
        Chart(
            "all_cosines",
            "Cosines of all pairs of decoder rows",
            "Share of pairs (log scale).",
            np.linspace(-1, 1, BINS + 1)[::4].round(3).tolist(),
            [Series("pairs", (pairs.reshape(-1, 4).sum(axis=1) / max(1, pairs.sum())).tolist())],
            "cosine",
            "share of pairs",
            log_y=True,
        ),
    ]
    if alignment is not None:
        aligned = np.linspace(-1, 1, 81)
        charts.append(
            Chart(
                "alignment",
                "Encoder against decoder",
                "Cosine of each latent's encoder row with its decoder row.",
                aligned.round(3).tolist(),
                [Series("latents", np.histogram(alignment, aligned)[0].tolist())],
                "cosine",
                "latents",
            )
        )
    return charts


def _l0_bars(distribution: NDArray[np.int64]) -> tuple[list[float], list[int]]:
    """At most 60 bars over the L0 that occur."""
    used = np.flatnonzero(distribution)
    if not len(used):
        return [0.0, 1.0], [0]
    low, high = int(used[0]), int(used[-1]) + 1
    width = max(1, -(-(high - low) // 60))
    edges = np.arange(low, high + width, width)
    counts = [int(distribution[a : a + width].sum()) for a in edges[:-1]]
    return [float(e) - 0.5 for e in edges], counts


def _shares(values: NDArray[Any], edges: NDArray[np.float64]) -> list[float]:
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    shares: list[float] = (counts / max(1, counts.sum())).tolist()
    return shares


def _panel(subject: Subject) -> Any:
    geometry = subject.geometry

    def panel(latent: int) -> list[dict[str, Any]]:
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

    return panel
