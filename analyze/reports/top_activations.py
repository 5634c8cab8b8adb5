"""Top activations: what each latent fires on, in context, and how its samples spread.

Per latent: its largest activations with identical contexts once, examples from each quarter of its activation
distribution, and rows with its favourite tokens on which it stays silent. All are gathered in the one pass: the largest
by a bounded list, the quarters from a uniform sample of its firings, the silent ones from a uniform sample of rows.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from analyze.kernels import over_latents, value_histogram
from analyze.keep import Keeper
from analyze.reports.base import Report, ReportConfig, Subject
from analyze.result import Chart, Column, Figure, ReportResult, Series, Table, TableColumn
from analyze.specialisation import Concentration, concentration
from analyze.stream import StreamBatch, mix

LOWEST_OCTAVE, OCTAVES, PER_OCTAVE = -12.0, 28, 4
"""Activations are counted in quarter octaves from 2⁻¹² to 2¹⁶."""

WORD_LATENTS = 2000
"""Latents whose top contexts are searched for common words; more than that are sampled."""


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
    specialised_q: float = 0.01
    """False discovery rate of the tests of specialisation."""
    specialised_share: float = 0.1
    """Effect gate: two random firings of a specialised latent agree at least this often (at most ten effective labels)."""

    def __post_init__(self) -> None:
        if min(self.top, self.bands, self.sample, self.raw_top) < 1 or min(self.per_band, self.silent) < 0:
            raise ValueError("top, bands, sample and raw_top are at least 1; per_band and silent at least 0")
        if min(self.before, self.after) < 0:
            raise ValueError("before and after are at least 0")
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
        self.histogram = np.zeros((n, OCTAVES * PER_OCTAVE), np.int32)
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
        return _result(self, Statistics.of(self))


@dataclass(frozen=True)
class Statistics:
    """Per latent [F]; NaN where not scored.

    Attributes:
        largest, mean: activation where it fires. density: share of rows on which it fires, position 0 left out; density_all.
        unique: share of distinct contexts among its raw_top activations.
        favourites: [F, 3] most common tokens of its sample, −1 where there are fewer.
        tokens, documents: concentration of its firings. verdict: specialised (on what) or general.
        context_mean, context_min, context_max: tokens of the document up to the peak, over its top examples.
    """

    largest: NDArray[np.float64]
    mean: NDArray[np.float64]
    density: NDArray[np.float64]
    density_all: NDArray[np.float64]
    unique: NDArray[np.float64]
    favourites: NDArray[np.int64]
    tokens: Concentration
    documents: Concentration
    verdict: NDArray[np.str_]
    context_mean: NDArray[np.float64]
    context_min: NDArray[np.float64]
    context_max: NDArray[np.float64]

    @classmethod
    def of(cls, report: TopActivations) -> Statistics:
        config, cache = report.config, report.subject.cache
        tokens, doc_id = cache.tokens.reshape(-1), cache.doc_id.reshape(-1)
        kept = report.sample.score > 0
        rows = np.where(kept, report.sample.row, 0)
        full = kept.all(axis=1)
        seen = report.subject.rest_rows
        labels = tokens[rows].astype(np.int64)
        by_token = concentration(
            labels, full, np.bincount(tokens[seen]), report.subject.seed, config.specialised_q, config.specialised_share
        )
        documents = doc_id[rows].astype(np.int64)
        by_document = concentration(
            documents, full, np.bincount(doc_id[seen].astype(np.int64)), report.subject.seed + 1,
            config.specialised_q, config.specialised_share,
        )  # fmt: skip
        alive = report.fired > 0
        verdict = np.select(
            [
                ~alive,
                ~full,
                by_token.specialised & by_document.specialised,
                by_token.specialised,
                by_document.specialised,
            ],
            ["dead", "rare", "token + document", "token", "document"],
            "general",
        )
        top_rows = np.where(report.top.score > 0, report.top.row, 0)
        length = np.where(report.top.score > 0, cache.pos_in_doc.reshape(-1)[top_rows] + 1.0, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(
                np.where(alive, report.top.value[:, 0].astype(np.float64), np.nan),
                report.sum / report.fired,
                (report.fired - report.fired_first) / max(1, report.rows - report.rows_first),
                report.fired / max(1, report.rows),
                _unique_share(report.raw),
                _favourites(labels, kept),
                by_token,
                by_document,
                verdict,
                _nan(np.nanmean, length),
                _nan(np.nanmin, length),
                _nan(np.nanmax, length),
            )


def _nan(function: Any, values: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.full(len(values), np.nan)
    some = np.isfinite(values).any(axis=1)
    if some.any():
        out[some] = function(values[some], axis=1)
    return out


def _unique_share(raw: Keeper) -> NDArray[np.float64]:
    kept = raw.score > 0
    keys = np.sort(np.where(kept, raw.key, np.uint64(2**64 - 1)), axis=1)
    distinct = (np.diff(keys, axis=1) != 0).sum(axis=1) + 1 - (~kept).any(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share: NDArray[np.float64] = np.where(kept.any(axis=1), distinct / kept.sum(axis=1), np.nan)
    return share


def _favourites(labels: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[F, 3] the most common labels of each row, −1 where there are fewer."""
    out = np.full((len(labels), 3), -1, np.int64)
    for i in range(len(labels)):
        for s, (token, _) in enumerate(Counter(labels[i][kept[i]].tolist()).most_common(3)):
            out[i, s] = token
    return out


def _result(report: TopActivations, s: Statistics) -> ReportResult:
    config, subject = report.config, report.subject
    vocabulary = subject.vocabulary
    alive = report.fired > 0
    names = [" ".join(repr(vocabulary.piece(int(t)))[1:-1] for t in row if t >= 0) for row in s.favourites]
    peak = [vocabulary.piece(int(subject.cache.tokens.reshape(-1)[r])) if r >= 0 else "" for r in report.top.row[:, 0]]
    verdicts = {str(v): int(n) for v, n in zip(*np.unique(s.verdict, return_counts=True), strict=True)}
    specialised = sum(n for v, n in verdicts.items() if v in ("token", "document", "token + document"))
    scored = int(np.isfinite(s.tokens.collision).sum())
    figures = [
        Figure(
            "specialised_share",
            "specialised latents",
            specialised / scored if scored else None,
            f"Share of scored latents whose firings agree in token or document at least {config.specialised_share:.0%} of the time, "
            f"far beyond the corpus (q < {config.specialised_q:g}).",
            "percent",
        ),
        Figure(
            "context_diversity",
            "distinct contexts among top activations",
            _mean(s.unique),
            f"Share of different contexts among each latent's {config.raw_top} largest activations, mean over latents.",
            "percent",
            better="higher",
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
    data = {
        "rows": report.rows,
        "ranking": [
            {
                "latent": int(i),
                "max": s.largest[i],
                "mean": s.mean[i],
                "count": int(report.fired[i]),
                "peak": peak[i],
                "text": _text(report, int(report.top.row[i, 0])),
            }
            for i in _ranking(s)[:100]
        ],
        "specialisation": verdicts,
        "base_agreement": {"token": s.tokens.base, "document": s.documents.base},
        "samples": {
            "per_latent": {"mean": float(report.raw.kept.mean()), "max": int(report.raw.kept.max(initial=0))},
            "total": int(report.raw.kept.sum()),
            "activation_range": [_low(report), float(np.nanmax(s.largest)) if alive.any() else None],
            "context_diversity": _mean(s.unique),
        },
        "context_length": {
            "mean": _mean(s.context_mean),
            "min": float(np.nanmin(s.context_min)) if alive.any() else None,
            "max": float(np.nanmax(s.context_max)) if alive.any() else None,
        },
        "common_words": words,
        "common_peaks": peaks,
        "text": vocabulary.known,
    }
    lead = (
        f"{int(alive.sum()):,} of {subject.n_latents:,} latents fired. Of {scored:,} that fired often enough, {specialised:,} are "
        f"specialised in a few tokens or documents and {verdicts.get('general', 0):,} are general."
        + ("" if vocabulary.known else " The cache carries no tokenizer: tokens are shown as ids.")
    )
    return ReportResult(
        "top_activations",
        report.title,
        lead,
        figures,
        _charts(report, s),
        _tables(report, s, names, peak, words, peaks),
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
            Column("specialised", "specialised", "On what: token, document, both; or general, rare, dead.", [str(v) for v in s.verdict], "text"),
            Column(
                "effective_tokens",
                "effective tokens",
                f"1 / the chance that two of its firings fall on the same token, at most {config.sample}.",
                s.tokens.effective,
                shown=False,
            ),
            Column(
                "effective_documents",
                "effective documents",
                "The same for documents.",
                s.documents.effective,
                shown=False,
            ),
            Column("diversity", "distinct contexts", "Among its largest activations, repeats included.", s.unique, "percent", shown=False),
        ],
        data,
        Panels(report, s),
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
                "document_agreement": s.documents.collision,
                "document_q": s.documents.q,
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


def _window(report: TopActivations, row: int) -> range:
    """Rows of the context of a peak, inside its sequence."""
    begin = row - row % report.subject.cache.ctx
    return range(
        max(begin, row - report.config.before),
        min(begin + report.subject.cache.ctx, row + report.config.after + 1),
    )


def _text(report: TopActivations, row: int) -> str:
    """The context with the peak token marked «so»."""
    tokens, piece = report.subject.cache.tokens.reshape(-1), report.subject.vocabulary.piece
    return "".join(f"«{piece(int(tokens[r]))}»" if r == row else piece(int(tokens[r])) for r in _window(report, row))


def common_words(report: TopActivations, limit: int = 40) -> list[dict[str, Any]]:
    """Words by the number of latents in whose top contexts they stand, beside the number expected from the same number of
    random windows of the corpus.
    """
    if not report.subject.vocabulary.known:
        return []
    tokens, piece = report.subject.cache.tokens.reshape(-1), report.subject.vocabulary.piece
    alive = np.flatnonzero(report.fired > 0)
    chosen = alive if len(alive) <= WORD_LATENTS else alive[np.argsort(mix(alive.astype(np.uint64)))[:WORD_LATENTS]]
    rng = np.random.default_rng(report.subject.seed)
    seen = np.flatnonzero(report.subject.rest_rows)

    def words(rows: list[int]) -> set[str]:
        text = " \n ".join("".join(piece(int(tokens[r])) for r in _window(report, row)) for row in rows)
        return {word.lower() for word in re.findall(r"[^\W\d_]{3,}", text)}

    observed: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    for i in chosen.tolist():
        rows = [int(r) for r in report.top.row[i, :10] if r >= 0]
        observed.update(words(rows))
        expected.update(words(rng.choice(seen, len(rows)).tolist() if len(seen) else []))
    return [
        {"word": word, "latents": n, "expected": expected[word], "of": len(chosen)}
        for word, n in observed.most_common(limit)
    ]


def common_peaks(report: TopActivations, s: Statistics, limit: int = 40) -> list[dict[str, Any]]:
    """Tokens by the number of latents whose favourite they are, beside their share of the corpus."""
    first = s.favourites[:, 0]
    first = first[first >= 0]
    if not len(first):
        return []
    tokens = report.subject.cache.tokens.reshape(-1)[report.subject.rest_rows]
    corpus = np.bincount(tokens, minlength=int(first.max()) + 1) / max(1, len(tokens))
    ids, counts = np.unique(first, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    piece = report.subject.vocabulary.piece
    return [
        {"token": piece(int(ids[o])), "latents": int(counts[o]), "share_of_corpus": float(corpus[ids[o]])}
        for o in order
    ]


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
            f"Effective number of tokens that a latent fires on (1 / the chance that two of its firings fall on the same one; "
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
        [i, s.largest[i], s.mean[i], int(report.fired[i]), peak[i], _text(report, int(report.top.row[i, 0]))]
        for i in ranking[:100]
    ]
    return [
        Table(
            "ranking",
            "Strongest latents",
            "Latents by their largest activation, with the context of that activation; the peak stands in «». Position 0 counts.",
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


class Panels:
    """Examples of one latent, as blocks for its panel.

    An example is [value, sequence, position, document, index of the peak, tokens, heat]; heat is 0 … 99 of the latent's
    largest activation, "" where the latent is silent throughout.
    """

    def __init__(self, report: TopActivations, s: Statistics) -> None:
        self.report, self.s = report, s
        cache = report.subject.cache
        self.tokens, self.doc_id, self.ctx = cache.tokens.reshape(-1), cache.doc_id.reshape(-1), cache.ctx
        self.by_token: dict[int, list[int]] = {}
        for row in sorted(report.silent):
            self.by_token.setdefault(int(self.tokens[row]), []).append(row)

    def __call__(self, latent: int) -> list[dict[str, Any]]:
        report = self.report
        top = report.top
        n = int(top.kept_of(latent))
        if not n:
            return []
        groups = [
            {
                "title": "Top activations",
                "note": "identical contexts once",
                "items": [self._example(latent, top, k) for k in range(n)],
            }
        ]
        groups += self._bands(latent)
        silent = self._silent(latent)
        if silent:
            groups.append({"title": "Silent on the same token", "note": "does not fire here", "items": silent})
        histogram = report.histogram[latent]
        used = np.flatnonzero(histogram)
        low, high = int(used[0]), int(used[-1]) + 1
        edges = 2.0 ** (LOWEST_OCTAVE + np.arange(low, high + 1) / PER_OCTAVE)
        return [
            {"type": "examples", "max": float(top.value[latent, 0]), "groups": groups},
            {
                "type": "chart",
                "title": "Activations where it fires",
                "note": f"{int(report.fired[latent]):,} firings",
                "x": [float(f"{edge:.3g}") for edge in edges],
                "series": [{"name": "firings", "role": "data", "y": histogram[low:high].tolist()}],
                "x_label": "activation (log scale)",
                "y_label": "rows",
            },
        ]

    def _example(self, latent: int, keeper: Keeper, k: int) -> list[Any]:
        return self._item(
            latent, int(keeper.row[latent, k]), float(keeper.value[latent, k]), keeper.heat_of(latent, k)
        )

    def _item(self, latent: int, row: int, value: float, heat: NDArray[np.float32] | None) -> list[Any]:
        window = _window(self.report, row)
        shown: Any = ""
        if heat is not None:
            largest = max(float(self.report.top.value[latent, 0]), 1e-30)
            start = self.report.config.before - (row - window.start)
            part = heat[start : start + len(window)]
            shown = np.ceil(part / largest * 99).clip(0, 99).astype(int).tolist()
        return [
            float(f"{value:.4g}"),
            row // self.ctx,
            row % self.ctx,
            int(self.doc_id[row]),
            row - window.start,
            self.tokens[window.start : window.stop].tolist(),
            shown,
        ]

    def _bands(self, latent: int) -> list[dict[str, Any]]:
        config, sample = self.report.config, self.report.sample
        n = int(sample.kept_of(latent))
        if not config.per_band or n < config.bands:
            return []
        shown = {int(row) for row in self.report.top.row[latent] if row >= 0}
        seen = {int(key) for key in self.report.top.key[latent, : self.report.top.kept_of(latent)]}
        order = np.argsort(-sample.value[latent, :n], kind="stable")
        groups = []
        for b, band in enumerate(np.array_split(order, config.bands)):
            items = []
            # The sample comes in random order (by hash): the first of each band are a random choice.
            for k in sorted(band.tolist()):
                key = int(sample.key[latent, k])
                if len(items) < config.per_band and int(sample.row[latent, k]) not in shown and key not in seen:
                    seen.add(key)
                    items.append(self._example(latent, sample, k))
            if items:
                high, low = 100 - 100 * b // config.bands, 100 - 100 * (b + 1) // config.bands
                groups.append({"title": f"Percentiles {low}–{high}", "note": "random firings", "items": items})
        return groups

    def _silent(self, latent: int) -> list[list[Any]]:
        items: list[list[Any]] = []
        for token in self.s.favourites[latent].tolist():
            for row in self.by_token.get(token, ()):
                if len(items) >= self.report.config.silent:
                    return items
                if not (self.report.silent[row] == latent).any():
                    items.append(self._item(latent, row, 0.0, None))
        return items


def _definitions(config: TopActivationsConfig, s: Statistics) -> list[tuple[str, str]]:
    return [
        (
            "Identical contexts once",
            f"Of examples with the same peak token and the same {config.before} tokens ahead of it, the strongest is shown.",
        ),
        ("Percentiles", f"Quarters of the activations of {config.sample} firings drawn uniformly, position 0 left out."),
        (
            "Silent on the same token",
            "Rows whose token is one of the latent's favourites and on which it does not fire: what it does not mean.",
        ),
        (
            "Specialised",
            f"Two random firings agree in token (or document) with a chance of at least {config.specialised_share:.0%}, and more often "
            f"than rows of the corpus (simulated null, Benjamini–Hochberg q < {config.specialised_q:g}). Corpus: token "
            f"{s.tokens.base:.2%}, document {s.documents.base:.2%}. Otherwise general.",
        ),
        ("Rare", f"Fewer than {config.sample} firings outside position 0: not scored."),
    ]
