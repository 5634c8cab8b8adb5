"""Top activations: what each latent fires on, in context, and how its samples spread.

Per latent: its largest activations with identical contexts once, examples from each quarter of its activation
distribution, and rows with its favourite tokens on which it stays silent. All are gathered in the one pass: the largest
by a bounded list, the quarters from a uniform sample of its firings, the silent ones from a uniform sample of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.parallel import over_latents
from ....shared.hashing import mix
from ...result import Chart, Column, Figure, ReportResult, Series, Table, TableColumn, show
from ...stream.batches import StreamBatch
from ...stream.keep import Keeper
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .kernels import value_histogram
from .logit_lens import LogitLens, lens_of
from .panels import LOWEST_OCTAVE, OCTAVES, PER_OCTAVE, Panels, Statistics, common_peaks, common_words, text_of


@dataclass(frozen=True, kw_only=True)
class TopActivationsConfig(ReportConfig):
    """What latents fire on."""

    kind: Literal["top_activations"] = "top_activations"
    top: int = 20
    """Examples with the largest activation, identical contexts once."""
    bands: int = 4
    """Quantile bands of the activation distribution that are shown, strongest first …"""
    per_band: int = 3
    """… with this many examples each."""
    silent: int = 4
    """Rows with the latent's favourite tokens on which it does not fire."""
    sample: int = 64
    """Firings drawn uniformly per latent (position 0 left out), for bands and statistics."""
    raw_top: int = 100
    """Largest activations, repeats included, for the statistics of context diversity."""
    before: int = 20
    """Tokens shown ahead of the peak; also how many must agree for two contexts to be identical."""
    after: int = 8
    """Tokens shown after the peak."""
    silent_rows: int = 20_000
    """Rows of the cache drawn to look for silent examples."""
    lens: int = 10
    """Output tokens that each latent promotes and suppresses most (logit lens), where the model is at hand; 0: none."""
    specialised_q: float = 0.01
    """False discovery rate of the tests of specialisation."""
    specialised_share: float = 0.1
    """Effect gate: two random firings of a specialised latent agree at least this often (at most ten effective
    labels).
    """

    def __post_init__(self) -> None:
        if min(self.top, self.bands, self.sample, self.raw_top) < 1 or min(self.per_band, self.silent) < 0:
            raise ValueError("top, bands, sample and raw_top are at least 1; per_band and silent at least 0")
        if min(self.before, self.after, self.lens) < 0:
            raise ValueError("before, after and lens are at least 0")
        if self.sample < 8:
            raise ValueError("sample is at least 8: the statistics need something to count")


class TopActivations(Report[TopActivationsConfig]):
    """Examples and their statistics."""

    config_class: ClassVar[type[ReportConfig]] = TopActivationsConfig
    title: ClassVar[str] = "Top activations"

    def __init__(self, config: TopActivationsConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        n = subject.n_latents
        window = (config.before, config.after)
        self.top = Keeper(n, config.top, distinct=True, context=config.before, window=window)
        self.raw = Keeper(n, config.raw_top, context=config.before)
        self.sample = Keeper(n, config.sample, by="sample", context=config.before, window=window)
        self.histogram = np.zeros((n, OCTAVES * PER_OCTAVE), np.int64)
        self.fired = np.zeros(n, np.int64)
        self.fired_first = np.zeros(n, np.int64)
        self.sum = np.zeros(n)
        self.rows = 0
        self.rows_first = 0
        self.silent: dict[int, NDArray[np.int32]] = {}
        share = min(1.0, config.silent_rows / max(1, subject.n_rows))
        self.silent_below = np.uint64(min(int(share * 2**64), 2**64 - 1))

    def update(self, batch: StreamBatch) -> None:
        codes, rows = batch.codes, batch.rows
        self.rows += int(rows.keep.sum())
        self.rows_first += int(rows.first.sum())
        starts = codes.by_latent.starts
        values = codes.latent_values
        self.fired += codes.fired
        self.sum += np.bincount(codes.latents, codes.values.astype(np.float64), len(self.sum))

        def count(first: int, stop: int) -> None:
            value_histogram(starts, values, LOWEST_OCTAVE, PER_OCTAVE, self.histogram, first, stop)

        over_latents(count, codes.fired)
        self.top.add(codes, rows)
        self.raw.add(codes, rows)
        at_first = np.repeat(rows.first, codes.l0)
        self.fired_first += np.bincount(codes.latents[at_first], minlength=len(self.fired))
        self.sample.add(codes, rows, only=rows.rest)
        drawn = rows.rest & (mix(rows.row.astype(np.uint64) ^ np.uint64(0x51)) <= self.silent_below)
        for r in np.flatnonzero(drawn).tolist():
            self.silent[int(rows.start + r)] = codes.latents[codes.indptr[r] : codes.indptr[r + 1]].copy()

    def merge(self, other: Self) -> None:
        for mine, theirs in ((self.top, other.top), (self.raw, other.raw), (self.sample, other.sample)):
            mine.merge(theirs)
        self.histogram += other.histogram
        self.fired += other.fired
        self.fired_first += other.fired_first
        self.sum += other.sum
        self.rows += other.rows
        self.rows_first += other.rows_first
        self.silent |= other.silent

    def finalise(self) -> ReportResult:
        lens = lens_of(self.subject, self.config.lens) if self.config.lens and self.subject.role == "run" else None
        return _result(self, Statistics.of(self), lens)


def _result(report: TopActivations, s: Statistics, lens: LogitLens | None) -> ReportResult:
    config, subject = report.config, report.subject
    vocabulary = subject.vocabulary
    alive = report.fired > 0
    names = [" ".join(vocabulary.label(int(t)) for t in row if t >= 0) for row in s.favourites]
    peak = [vocabulary.label(int(subject.cache.tokens.reshape(-1)[r])) if r >= 0 else "" for r in report.top.row[:, 0]]
    verdicts = {str(v): int(n) for v, n in zip(*np.unique(s.verdict, return_counts=True), strict=True)}
    specialised = sum(n for v, n in verdicts.items() if v not in ("dead", "rare", "general"))
    scored = int(np.isfinite(s.tokens.collision).sum())
    figures = [
        Figure(
            "specialised_share",
            "specialised latents",
            specialised / scored if scored else None,
            f"Share of scored latents whose firings agree in token or {s.source} at least "
            f"{config.specialised_share:.0%} of the time, "
            f"far beyond the corpus (q < {config.specialised_q:g}).",
            "percent",
            short="specialised",
            sweep=True,
        ),
        Figure(
            "context_diversity",
            "distinct contexts among top activations",
            _mean(s.unique),
            f"Share of different contexts among each latent's {config.raw_top} largest activations, mean over latents.",
            "percent",
            better="higher",
            short="contexts",
            sweep=True,
        ),
        Figure(
            "median_density",
            "median firing rate",
            float(np.median(s.density[alive])) if alive.any() else None,
            "Share of rows on which a living latent fires.",
            "percent",
            with_bos=float(np.median(s.density_all[alive])) if alive.any() else None,
            in_summary=False,
        ),
    ]
    words, peaks = common_words(report), common_peaks(report, s)
    samples = {
        "per_latent": {"mean": float(report.raw.kept.mean()), "max": int(report.raw.kept.max(initial=0))},
        "total": int(report.raw.kept.sum()),
        "distinct_contexts": round(float(np.nansum(s.unique * report.raw.kept))),
        "activation_range": [_low(report), float(np.nanmax(s.largest)) if alive.any() else None],
        "context_diversity": _mean(s.unique),
    }
    length = {
        "mean": _mean(s.context_mean),
        "min": float(np.nanmin(s.context_min)) if alive.any() else None,
        "max": float(np.nanmax(s.context_max)) if alive.any() else None,
    }
    data = {
        "rows": report.rows,
        "ranking": [
            {
                "latent": int(i),
                "max": s.largest[i],
                "mean": s.mean[i],
                "count": int(report.fired[i]),
                "peak": peak[i],
                "text": text_of(report, int(report.top.row[i, 0])),
            }
            for i in _ranking(s)[:100]
        ],
        "specialisation": verdicts,
        "base_agreement": {"token": s.tokens.base, s.source: s.documents.base},
        "samples": samples,
        "context_length": length,
        "common_words": words,
        "common_peaks": peaks,
        "text": vocabulary.known,
        "logit_lens": lens is not None,
    }
    lead = (
        f"{int(alive.sum()):,} of {subject.n_latents:,} latents fired. Of {scored:,} that fired often enough, "
        f"{specialised:,} are "
        f"specialised in a few tokens or {s.source}s and {verdicts.get('general', 0):,} are general."
        + ("" if vocabulary.known else " The cache carries no tokenizer: tokens are shown as ids.")
    )
    return ReportResult(
        "top_activations",
        report.title,
        lead,
        figures,
        _charts(report, s),
        [*_tables(report, s, names, peak, words, peaks), _samples_table(config, samples, length)],
        [
            Column("fires_on", "fires on", "Most common tokens of a uniform sample of its firings.", names, "text"),
            Column(
                "density",
                "density",
                "Share of rows on which it fires, position 0 left out.",
                s.density,
                "percent",
            ),
            Column("max", "max", "Largest activation.", s.largest),
            Column("mean", "mean", "Mean activation where it fires.", s.mean, shown=False),
            Column("specialised", "specialised", f"On what: token, {s.source}, both; or general, rare, dead.", [str(v)
            for v in s.verdict], "text"),
            Column(
                "effective_tokens",
                "effective tokens",
                f"1 / the chance that two of its firings fall on the same token, at most {config.sample}.",
                s.tokens.effective,
                shown=False,
            ),
            Column(
                f"effective_{s.source}s",
                f"effective {s.source}s",
                f"The same for {s.source}s.",
                s.documents.effective,
                shown=False,
            ),
            Column("diversity", "distinct contexts", "Among its largest activations, repeats included.", s.unique,
            "percent", shown=False),
        ],
        data,
        Panels(report, s, lens),
        {
            "latents": {
                "latent": np.arange(subject.n_latents),
                "fired": report.fired,
                "density": s.density,
                "density_with_bos": s.density_all,
                "max": s.largest,
                "mean": s.mean,
                "fires_on": np.array(names),
                "specialised": s.verdict,
                "token_agreement": s.tokens.collision,
                "token_q": s.tokens.q,
                f"{s.source}_agreement": s.documents.collision,
                f"{s.source}_q": s.documents.q,
                "context_diversity": s.unique,
            }
        },
        _definitions(config, s),
    )  # fmt: skip


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _low(report: TopActivations) -> float | None:
    kept = report.raw.value[report.raw.score > 0]
    return float(kept.min()) if len(kept) else None


def _ranking(s: Statistics) -> list[int]:
    """Living latents by largest activation."""
    order = np.argsort(-np.nan_to_num(s.largest, nan=-1.0), kind="stable")
    return [int(i) for i in order if np.isfinite(s.largest[i])]


def _charts(report: TopActivations, s: Statistics) -> list[Chart]:
    alive = report.fired > 0
    decades = np.arange(-6, 0.001, 0.25)

    def histogram(density: NDArray[np.float64]) -> list[int]:
        some = density[alive & (density > 0)]
        counts: list[int] = np.histogram(np.clip(np.log10(some), -6, 0), decades)[0].tolist()
        return counts

    effective = s.tokens.effective[np.isfinite(s.tokens.effective)]
    edges = np.linspace(0, report.config.sample, 33)
    null = 1 / max(s.tokens.base, 1 / report.config.sample)
    return [
        Chart(
            "density",
            "How often latents fire",
            "Latents by the share of rows on which they fire (powers of ten).",
            decades.round(2).tolist(),
            [
                Series("without position 0", histogram(s.density)),
                Series("with position 0", histogram(s.density_all), "with_bos"),
            ],
            "log₁₀ of the firing rate",
            "latents",
        ),
        Chart(
            "effective_tokens",
            "On how many different tokens",
            f"Effective number of tokens that a latent fires on (1 / the chance that two of its firings fall on the "
            f"same one; "
            f"{report.config.sample} firings each). Rows drawn at random from the corpus: {null:.1f}.",
            edges.round(2).tolist(),
            [Series("latents", np.histogram(effective, edges)[0].tolist())],
            "effective tokens",
            "latents",
            marks=[(min(null, report.config.sample), "random rows")],
        ),
    ]


def _tables(
    report: TopActivations,
    s: Statistics,
    names: list[str],
    peak: list[str],
    words: list[dict[str, Any]],
    peaks: list[dict[str, Any]],
) -> list[Table]:
    ranking = _ranking(s)
    rows = [
        [i, s.largest[i], s.mean[i], int(report.fired[i]), peak[i], text_of(report, int(report.top.row[i, 0]))]
        for i in ranking[:100]
    ]
    return [
        Table(
            "ranking",
            "Strongest latents",
            "Latents by their largest activation, with the context of that activation; the peak stands in «». "
            "Position 0 counts.",
            [
                TableColumn("latent", "latent"),
                TableColumn("max", "number"),
                TableColumn("mean", "number", "Where it fires."),
                TableColumn("fires on rows", "integer"),
                TableColumn("peak", "text"),
                TableColumn("context", "text"),
            ],
            rows,
            len(ranking),
        ),
        Table(
            "peaks",
            "Favourite tokens",
            "Tokens by the number of latents that fire on them most.",
            [
                TableColumn("token", "text"),
                TableColumn("latents", "integer"),
                TableColumn("share of the corpus", "percent"),
            ],
            [[p["token"], p["latents"], p["share_of_corpus"]] for p in peaks],
            len(peaks),
        ),
        Table(
            "words",
            "Common words in top contexts",
            "In the top contexts of how many latents a word stands, and in how many sets of as many random contexts.",
            [
                TableColumn("word", "text"),
                TableColumn("latents", "integer"),
                TableColumn("expected", "integer", "From random contexts of the corpus."),
            ],
            [[w["word"], w["latents"], w["expected"]] for w in words],
            len(words),
        ),
    ]


def _samples_table(config: TopActivationsConfig, samples: dict[str, Any], length: dict[str, Any]) -> Table:
    per_latent, (low, high) = samples["per_latent"], samples["activation_range"]
    rows = [
        ["samples", show(samples["total"])],
        ["samples per latent, mean (at most)", f"{show(per_latent['mean'])} ({show(per_latent['max'])})"],
        ["activation range", f"{show(low)} … {show(high)}"],
        ["distinct contexts", show(samples["distinct_contexts"])],
        ["distinct contexts per latent, mean share", show(samples["context_diversity"], "percent")],
        ["tokens of context, mean (range)", f"{show(length['mean'])} ({show(length['min'])} … {show(length['max'])})"],
    ]
    return Table(
        "samples",
        "Samples",
        f"Each latent's {config.raw_top} largest activations, repeats included. A context is the peak and the "
        f"{config.before} tokens ahead of it; its length, the tokens of the document up to the peak, is over the "
        f"{config.top} examples shown.",
        [TableColumn("figure", "text"), TableColumn("value", "text")],
        rows,
        len(rows),
    )


def _definitions(config: TopActivationsConfig, s: Statistics) -> list[tuple[str, str]]:
    return [
        (
            "Identical contexts once",
            f"Of examples with the same peak token and the same {config.before} tokens ahead of it, the strongest is "
            f"shown.",
        ),
        (
            "Percentiles",
            f"Quarters of the activations of {config.sample} firings drawn uniformly, position 0 left out.",
        ),
        (
            "Silent on the same token",
            "Rows whose token is one of the latent's favourites and on which it does not fire: what it does not mean.",
        ),
        (
            "Specialised",
            f"Two random firings agree in token (or {s.source}) with a chance of at least "
            f"{config.specialised_share:.0%}, and more often "
            f"than rows of the corpus (simulated null, Benjamini–Hochberg q < {config.specialised_q:g}). Corpus: token "
            f"{s.tokens.base:.2%}, {s.source} {s.documents.base:.2%}. Otherwise general.",
        ),
        ("Rare", f"Fewer than {config.sample} firings outside position 0: not scored."),
    ]
