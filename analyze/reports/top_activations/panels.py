"""What is made of the entries that the pass kept: statistics of the samples, common words, examples in context."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....shared.cache.documents import sources_of_rows
from ....shared.codes.specialisation import Concentration, concentration, verdicts
from ....shared.hashing import mix
from ...stream.keep import Keeper
from .logit_lens import LogitLens

if TYPE_CHECKING:
    from .report import TopActivations

LOWEST_OCTAVE, OCTAVES, PER_OCTAVE = -12.0, 28, 4
"""Activations are counted in quarter octaves from 2⁻¹² to 2¹⁶."""

WORD_LATENTS = 2000
"""Latents whose top contexts are searched for common words; more than that are sampled."""


@dataclass(frozen=True)
class Statistics:
    """Per latent [F]; NaN where not scored.

    Attributes:
        largest, mean: activation where it fires. density: share of rows on which it fires, position 0 left out;
        density_all.
        unique: share of distinct contexts among its raw_top activations.
        favourites: [F, 3] most common tokens of its sample, −1 where there are fewer.
        tokens: concentration of its firings on tokens. documents: on domains or documents; source says which.
        verdict: specialised (on what) or general.
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
    source: str
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
        full: NDArray[np.bool_] = np.asarray(kept.all(axis=1))
        seen = report.subject.rest_rows
        labels = tokens[rows].astype(np.int64)
        by_token = concentration(
            labels, full, np.bincount(tokens[seen]), report.subject.seed, config.specialised_q, config.specialised_share
        )
        source, of_row = sources_of_rows(doc_id, report.subject.domains)
        by_source = concentration(
            of_row[rows], full, np.bincount(of_row[seen]), report.subject.seed + 1,
            config.specialised_q, config.specialised_share,
        )  # fmt: skip
        alive = report.fired > 0
        verdict = verdicts(by_token, by_source, source, alive, full)
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
                by_source,
                source,
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


def window_of(report: TopActivations, row: int) -> range:
    """Rows of the context of a peak, inside its sequence."""
    begin = row - row % report.subject.cache.ctx
    return range(
        max(begin, row - report.config.before),
        min(begin + report.subject.cache.ctx, row + report.config.after + 1),
    )


def text_of(report: TopActivations, row: int) -> str:
    """The context with the peak token marked «so»."""
    window = window_of(report, row)
    tokens = report.subject.cache.tokens.reshape(-1)[window.start : window.stop]
    pieces = report.subject.vocabulary.pieces(tokens.tolist())
    pieces[row - window.start] = f"«{pieces[row - window.start]}»"
    return "".join(pieces)


def common_words(report: TopActivations, limit: int = 40) -> list[dict[str, Any]]:
    """Words by the number of latents in whose top contexts they stand, beside the number expected from the same
    number of
    random windows of the corpus.
    """
    if not report.subject.vocabulary.known:
        return []
    tokens, text = report.subject.cache.tokens.reshape(-1), report.subject.vocabulary.text
    alive = np.flatnonzero(report.fired > 0)
    chosen = alive if len(alive) <= WORD_LATENTS else alive[np.argsort(mix(alive.astype(np.uint64)))[:WORD_LATENTS]]
    rng = np.random.default_rng(report.subject.seed)
    seen = np.flatnonzero(report.subject.rest_rows)

    def words(rows: list[int]) -> set[str]:
        windows = (window_of(report, row) for row in rows)
        joined = " \n ".join(text(tokens[window.start : window.stop].tolist()) for window in windows)
        return set(re.findall(r"[^\W\d_]{3,}", joined.lower()))

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
    label = report.subject.vocabulary.label
    return [
        {"token": label(int(ids[o])), "latents": int(counts[o]), "share_of_corpus": float(corpus[ids[o]])}
        for o in order
    ]


class Panels:
    """Examples of one latent, as blocks for its panel.

    An example is [value, sequence, position, document, index of the peak, tokens, heat]; heat is 0 … 99 of the latent's
    largest activation, "" where the latent is silent throughout.
    """

    def __init__(self, report: TopActivations, s: Statistics, lens: LogitLens | None) -> None:
        self.report, self.s, self.lens = report, s, lens
        cache = report.subject.cache
        self.tokens, self.doc_id, self.ctx = cache.tokens.reshape(-1), cache.doc_id.reshape(-1), cache.ctx
        self.before, self.after = report.config.before, report.config.after
        self.by_token: dict[int, list[int]] = {}
        for row in sorted(report.silent):
            self.by_token.setdefault(int(self.tokens[row]), []).append(row)

    def __call__(self, latent: int) -> list[dict[str, Any]]:
        report = self.report
        top = report.top
        n = int(top.kept_of(latent))
        if not n:
            return self._lens(latent)
        heat = self._heat(latent, top)
        groups = [
            {
                "title": "Top activations",
                "note": "identical contexts once",
                "items": [self._example(latent, top, k, heat[k]) for k in range(n)],
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
            *self._lens(latent),
        ]

    def _lens(self, latent: int) -> list[dict[str, Any]]:
        """Output tokens that the decoder row promotes and suppresses."""
        if self.lens is None:
            return []
        label, lens = self.report.subject.vocabulary.label, self.lens
        rows = [
            [label(int(up)), float(f"{more:.3g}"), label(int(down)), float(f"{less:.3g}")]
            for up, more, down, less in zip(
                lens.top[latent], lens.top_value[latent], lens.bottom[latent], lens.bottom_value[latent], strict=True
            )
        ]
        return [
            {
                "type": "table",
                "title": "Output tokens",
                "note": "logit lens, last norm's gain; later layers left out",
                "columns": [["promotes", "text"], ["logit", "number"], ["suppresses", "text"], ["logit", "number"]],
                "rows": rows,
            }
        ]

    def _heat(self, latent: int, keeper: Keeper) -> list[list[int]]:
        """The activations around each kept entry of a latent, 0 … 99 of its largest."""
        largest = max(float(self.report.top.value[latent, 0]), 1e-30)
        heat: list[list[int]] = np.ceil(keeper.heat_of(latent) * (99 / largest)).clip(0, 99).astype(np.int8).tolist()
        return heat

    def _example(self, latent: int, keeper: Keeper, k: int, heat: list[int]) -> list[Any]:
        return self._item(int(keeper.row[latent, k]), float(keeper.value[latent, k]), heat)

    def _item(self, row: int, value: float, heat: list[int] | None) -> list[Any]:
        sequence, position = divmod(row, self.ctx)
        ahead, behind = min(position, self.before), min(self.ctx - 1 - position, self.after)
        return [
            float(f"{value:.4g}"),
            sequence,
            position,
            int(self.doc_id[row]),
            ahead,
            self.tokens[row - ahead : row + behind + 1].tolist(),
            "" if heat is None else heat[self.before - ahead : self.before + behind + 1],
        ]

    def _bands(self, latent: int) -> list[dict[str, Any]]:
        config, sample = self.report.config, self.report.sample
        n = int(sample.kept_of(latent))
        if not config.per_band or n < config.bands:
            return []
        shown = {int(row) for row in self.report.top.row[latent] if row >= 0}
        seen = {int(key) for key in self.report.top.key[latent, : self.report.top.kept_of(latent)]}
        order = np.argsort(-sample.value[latent, :n], kind="stable")
        groups, heat = [], self._heat(latent, sample)
        for b, band in enumerate(np.array_split(order, config.bands)):
            items: list[list[Any]] = []
            # The sample comes in random order (by hash): the first of each band are a random choice.
            for k in sorted(band.tolist()):
                key = int(sample.key[latent, k])
                if len(items) < config.per_band and int(sample.row[latent, k]) not in shown and key not in seen:
                    seen.add(key)
                    items.append(self._example(latent, sample, k, heat[k]))
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
                    items.append(self._item(row, 0.0, None))
        return items
