"""Statistics of what was collected: how often and how strongly each latent fires, on how many things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....shared.cache.documents import sources_of_rows
from ....shared.codes.specialisation import Concentration, concentration, verdicts
from ...stream.keep import Keeper
from ...subject.subject import Subject
from .collected import Collected
from .config import TopActivationsConfig

FAVOURITES = 3
"""Most common tokens named per latent."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Per latent [F]; NaN where not scored.

    Attributes:
        fired: rows on which it fires.
        largest, mean: activation where it fires. largest_ordinary: excluding position 0 and massive rows.
        density, density_all, density_ordinary: share of rows on which it fires, excluding position 0, including it, and
            excluding massive rows too; the last is NaN where there are none.
        unique: share of distinct contexts among its raw_top activations.
        favourites: [F, 3] most common tokens of its sample, −1 where there are fewer.
        tokens: concentration of its firings on tokens. documents: on domains or documents; source says which.
        verdict: specialised (on what) or general.
        context_mean, context_min, context_max: tokens of the contexts of its top examples.
    """

    fired: NDArray[np.int64]
    largest: NDArray[np.float64]
    largest_ordinary: NDArray[np.float64]
    mean: NDArray[np.float64]
    density: NDArray[np.float64]
    density_all: NDArray[np.float64]
    density_ordinary: NDArray[np.float64]
    unique: NDArray[np.float64]
    favourites: NDArray[np.int64]
    tokens: Concentration
    documents: Concentration
    source: str
    verdict: NDArray[np.str_]
    context_mean: NDArray[np.float64]
    context_min: NDArray[np.float64]
    context_max: NDArray[np.float64]

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Latents that fire at all [F]."""
        return self.fired > 0

    @property
    def n_scored(self) -> int:
        """Latents whose firings were tested for specialisation."""
        return int(np.isfinite(self.tokens.collision).sum())

    @property
    def specialised(self) -> NDArray[np.bool_]:
        """Latents specialised in anything [F]."""
        return ~np.isin(self.verdict, ("dead", "rare", "general"))

    @property
    def verdicts(self) -> dict[str, int]:
        """Verdict → latents."""
        return {str(v): int(n) for v, n in zip(*np.unique(self.verdict, return_counts=True), strict=True)}

    @property
    def n_specialised(self) -> int:
        """Latents specialised in anything."""
        return sum(n for v, n in self.verdicts.items() if v not in ("dead", "rare", "general"))

    @classmethod
    def of(cls, collected: Collected, subject: Subject, config: TopActivationsConfig) -> Statistics:
        """All of them, from one pass."""
        cache, fired, alive = subject.cache, collected.fired, collected.fired > 0
        labels, kept = _labels(collected.sample, cache.tokens)
        full: NDArray[np.bool_] = np.asarray(kept.all(axis=1))
        seen = subject.rest_rows
        level, gate = config.specialised_q, config.specialised_share
        corpus = np.bincount(cache.tokens.reshape(-1)[seen])
        by_token = concentration(labels, full, corpus, seed=subject.seed, level=level, gate=gate)
        source, of_row = sources_of_rows(cache.doc_id.reshape(-1), subject.domains)
        sources, _ = _labels(collected.sample, of_row)
        corpus = np.bincount(of_row[seen])
        by_source = concentration(sources, full, corpus, seed=subject.seed + 1, level=level, gate=gate)
        length = _lengths(collected.top, cache.ctx, config)
        rest_rows = collected.rows - collected.rows_first
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(
                fired=fired,
                largest=np.fmax(_largest(collected.top), _largest(collected.apart)),
                largest_ordinary=_largest(collected.top),
                mean=collected.sum / fired,
                density=(fired - collected.fired_first) / max(1, rest_rows),
                density_all=fired / max(1, collected.rows),
                density_ordinary=_density_ordinary(collected),
                unique=_unique_share(collected.raw),
                favourites=_favourites(labels, kept),
                tokens=by_token,
                documents=by_source,
                source=source,
                verdict=verdicts(by_token, by_source, source, alive=alive, scored=full),
                context_mean=_over_some(np.nanmean, length),
                context_min=_over_some(np.nanmin, length),
                context_max=_over_some(np.nanmax, length),
            )


def _density_ordinary(collected: Collected) -> NDArray[np.float64]:
    """Share of the ordinary rows on which each latent fires [F]; NaN without massive rows."""
    if not collected.rows_massive:
        return np.full(len(collected.fired), np.nan)
    fired = collected.fired - collected.fired_first - collected.fired_massive
    share: NDArray[np.float64] = fired / max(1, collected.rows - collected.rows_first - collected.rows_massive)
    return share


def _largest(keeper: Keeper) -> NDArray[np.float64]:
    """The largest activation that is kept of each latent [F]; NaN where none is."""
    return np.where(keeper.kept > 0, keeper.value[:, 0].astype(np.float64), np.nan)


def _labels(sample: Keeper, of_row: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(label of each kept entry [F, m], which entries are kept); where none is kept, the label of row 0."""
    kept = sample.score > 0
    rows = np.where(kept, sample.row, 0)
    return of_row.reshape(-1)[rows].astype(np.int64), kept


def _lengths(top: Keeper, ctx: int, config: TopActivationsConfig) -> NDArray[np.float64]:
    """Tokens of the context shown around each kept peak, itself included [F, k]; NaN where none is kept."""
    kept = top.score > 0
    position = np.where(kept, top.row, 0) % ctx
    length = np.minimum(position, config.before) + 1 + np.minimum(ctx - 1 - position, config.after)
    return np.where(kept, length.astype(np.float64), np.nan)


def _over_some(function: Callable[..., Any], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A NaN-skipping function over each row [F]; NaN for rows of nothing but NaN, without NumPy's warning."""
    out = np.full(len(values), np.nan)
    some = np.isfinite(values).any(axis=1)
    if some.any():
        out[some] = function(values[some], axis=1)
    return out


def _unique_share(raw: Keeper) -> NDArray[np.float64]:
    """Distinct contexts / entries kept, per latent [F]."""
    kept = raw.score > 0
    # Empty places all get one key above every hash. Sorted, distinct keys are the steps plus one; where some places are
    # empty, their common key is one too many.
    keys = np.sort(np.where(kept, raw.key, np.uint64(2**64 - 1)), axis=1)
    distinct = (np.diff(keys, axis=1) != 0).sum(axis=1) + 1 - (~kept).any(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share: NDArray[np.float64] = np.where(kept.any(axis=1), distinct / kept.sum(axis=1), np.nan)
    return share


def _favourites(labels: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[F, 3] the most common labels of each row, −1 where there are fewer."""
    out = np.full((len(labels), FAVOURITES), -1, np.int64)
    for i in range(len(labels)):
        for s, (token, _) in enumerate(Counter(labels[i][kept[i]].tolist()).most_common(FAVOURITES)):
            out[i, s] = token
    return out
