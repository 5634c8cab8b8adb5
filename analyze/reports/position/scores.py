"""Where latents fire: every measure with its null and its test, from the counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ....shared.cache import Cache, positions
from ....shared.codes.statistics import (
    benjamini_hochberg,
    binomial_upper,
    gamma_upper,
    kl_to_base,
    mutual_information,
    spearman_rows,
)
from ...stream.keep import Keeper
from .bins import Bins
from .config import PositionConfig
from .counts import Counts


@dataclass(frozen=True, kw_only=True)
class PositionScores:
    """Per latent, all [F]; NaN where not scored.

    Attributes:
        bins: [F, n_coarse] firings in each coarse bin; bin_rows: [n_coarse] rows in it.
        scored: fires on ≥ min_fired rows.
        share, enrichment, p, q: position 0: share of firings, (n_i0/n_i)/(N_0/N), exact binomial test, corrected.
        bos: BOS-biased. top, top_distinct: share of its top activations at position 0, repeats included, and each
            context once.
        kl, kl_all: bits from the base rate, excluding position 0 and including it.
        mi, mi_all: mutual information with position beyond the circular shifts' mean; mi_q corrected. mi_ordinary: mi
            excluding massive rows too; NaN where there are none.
        biggest: share of its firings after position 0 in its fullest bin; biggest_bin: which (1 …).
        biased: position-biased. spearman, spearman_all: ρ of mean activation with position.
        profile_rows, profile_firings: [n_profile] rows that count in each profile bin, and the firings of all latents.
    """

    bins: NDArray[np.int64]
    bin_rows: NDArray[np.int64]
    scored: NDArray[np.bool_]
    share: NDArray[np.float64]
    enrichment: NDArray[np.float64]
    p: NDArray[np.float64]
    q: NDArray[np.float64]
    bos: NDArray[np.bool_]
    top: NDArray[np.float64]
    top_distinct: NDArray[np.float64]
    kl: NDArray[np.float64]
    kl_all: NDArray[np.float64]
    mi: NDArray[np.float64]
    mi_all: NDArray[np.float64]
    mi_ordinary: NDArray[np.float64]
    mi_q: NDArray[np.float64]
    biggest: NDArray[np.float64]
    biggest_bin: NDArray[np.int64]
    biased: NDArray[np.bool_]
    spearman: NDArray[np.float64]
    spearman_all: NDArray[np.float64]
    profile_rows: NDArray[np.int64]
    profile_firings: NDArray[np.int64]

    @cached_property
    def fired(self) -> NDArray[np.int64]:
        """Rows on which each latent fires [F]."""
        fired: NDArray[np.int64] = self.bins.sum(axis=1)
        return fired

    @cached_property
    def row_share(self) -> NDArray[np.float64]:
        """Share of the rows in each coarse bin [n_coarse]; of bin 0, the base rate."""
        share: NDArray[np.float64] = self.bin_rows / max(1, self.bin_rows.sum())
        return share

    @property
    def n_alive(self) -> int:
        """Latents that fire at all."""
        return int((self.fired > 0).sum())

    @property
    def n_scored(self) -> int:
        """Latents that fire often enough."""
        return int(self.scored.sum())


class Measured(NamedTuple):
    """What the counts of n latents come to, before anything is tested: `bins` [n, n_coarse], all others [n].

    As in PositionScores, but of every latent, scored or not; `mi_p` is not yet corrected.
    """

    bins: NDArray[np.int64]
    kl: NDArray[np.float64]
    kl_all: NDArray[np.float64]
    mi: NDArray[np.float64]
    mi_p: NDArray[np.float64]
    mi_all: NDArray[np.float64]
    mi_ordinary: NDArray[np.float64]
    spearman: NDArray[np.float64]
    spearman_all: NDArray[np.float64]


def measure(counts: Counts) -> Measured:
    """Every measure of some latents that needs more than their firings in the coarse bins."""
    config = counts.config
    bins, bin_rows = _coarse(counts.firings, counts.rows, counts.bins)
    rest, rest_rows = bins[:, 1:], bin_rows[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, mean_rest = counts.sums / counts.rows, counts.sums[:, 1:] / counts.rows[1:]
    mi, mi_p = _excess(rest, rest_rows, counts.shifted, config.shifts)
    return Measured(
        bins=bins,
        kl=kl_to_base(rest, rest_rows / max(1, int(rest_rows.sum()))),
        kl_all=kl_to_base(bins, bin_rows / max(1, int(bin_rows.sum()))),
        mi=mi,
        mi_p=mi_p,
        mi_all=_excess(bins, bin_rows, counts.shifted_all, config.shifts)[0],
        mi_ordinary=_without_massive(counts, config),
        # A profile bin without rows has no mean: it takes no rank.
        spearman=spearman_rows(mean_rest[:, counts.rows[1:] > 0]),
        spearman_all=spearman_rows(mean[:, counts.rows > 0]),
    )


def score(
    blocks: Iterable[Counts], config: PositionConfig, top: NDArray[np.float64], top_distinct: NDArray[np.float64]
) -> PositionScores:
    """Every measure and test.

    Args:
        blocks: the counts of ascending ranges of latents, which together are all; each is read once.
        top, top_distinct: [F] as in PositionScores.
    """
    measured, profile_firings, bin_rows = [], np.zeros(0, np.int64), np.zeros(0, np.int64)
    for counts in blocks:
        measured.append(measure(counts))
        rows, bin_rows = counts.rows, _coarse(counts.firings[:0], counts.rows, counts.bins)[1]
        profile_firings = counts.firings.sum(axis=0) + (profile_firings if len(profile_firings) else 0)
    m = Measured(*map(np.concatenate, zip(*measured, strict=True)))
    n, n_rest = m.bins.sum(axis=1), m.bins[:, 1:].sum(axis=1)
    scored, scored_rest = n >= config.min_fired, n_rest >= config.min_fired
    base = bin_rows[0] / max(1, int(bin_rows.sum()))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = _only(scored, m.bins[:, 0] / n)
        enrichment = share / base if base > 0 else np.full(len(n), np.nan)
        biggest = _only(scored_rest, m.bins[:, 1:].max(axis=1) / n_rest)
    p = _only(scored, binomial_upper(m.bins[:, 0], n, base))
    q, mi_q = benjamini_hochberg(p), benjamini_hochberg(_only(scored_rest, m.mi_p))
    return PositionScores(
        bins=m.bins,
        bin_rows=bin_rows,
        scored=scored,
        share=share,
        enrichment=enrichment,
        p=p,
        q=q,
        bos=(q < config.q) & (share > config.bos_share) & (enrichment > config.bos_enrichment),
        top=top,
        top_distinct=top_distinct,
        kl=_only(scored_rest, m.kl),
        kl_all=_only(scored, m.kl_all),
        mi=_only(scored_rest, m.mi),
        mi_all=_only(scored, m.mi_all),
        mi_ordinary=m.mi_ordinary,
        mi_q=mi_q,
        biggest=biggest,
        biggest_bin=m.bins[:, 1:].argmax(axis=1) + 1,
        biased=(mi_q < config.q) & (biggest > config.bin_share),
        spearman=_only(scored_rest, m.spearman),
        spearman_all=_only(scored, m.spearman_all),
        profile_rows=rows,
        profile_firings=profile_firings,
    )


def _only(mask: NDArray[np.bool_], values: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.where(mask, values, np.nan)


def _without_massive(counts: Counts, config: PositionConfig) -> NDArray[np.float64]:
    """Mutual information beyond circular shifts [F], excluding position 0 and massive rows; NaN where not scored or
    where there are no massive rows."""
    massive = counts.massive
    if massive is None:
        return np.full(len(counts.firings), np.nan)
    bins, rows = _coarse(counts.firings - massive.firings, counts.rows - massive.rows, counts.bins)
    mi, _ = _excess(bins[:, 1:], rows[1:], counts.shifted - massive.shifted, config.shifts)
    return _only(bins[:, 1:].sum(axis=1) >= config.min_fired, mi)


def _coarse(
    firings: NDArray[np.int64], rows: NDArray[np.int64], of: Bins
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(firings [F, n_coarse], rows [n_coarse]) of the coarse bins, from those of the profile's bins."""
    n_coarse, of_profile = of.n_coarse, of.coarse_of
    bins = np.zeros((len(firings), n_coarse), np.int64)
    bin_rows = np.zeros(n_coarse, np.int64)
    for b in range(n_coarse):
        bins[:, b] = firings[:, of_profile == b].sum(axis=1)
        bin_rows[b] = rows[of_profile == b].sum()
    return bins, bin_rows


def _excess(
    bins: NDArray[np.int64], bin_rows: NDArray[np.int64], shifted: NDArray[np.int32], shifts: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mutual information minus the mean of its circular shifts, p) per latent.

    A finite sample has positive mutual information even without any link to position: what the shifts have on average.
    p is the tail of a gamma distribution with the shifts' mean and variance, so it can be smaller than 1 / shifts.
    """
    observed = mutual_information(bins, bin_rows)
    mean, var = np.empty(len(bins)), np.empty(len(bins))
    for start in range(0, len(bins), 512):  # [512, shifts, bins] at a time
        part = shifted[start : start + 512].reshape(-1, shifts, bins.shape[1])
        # A rotation of a padded sequence can put more firings into a bin than rows lie there.
        null = mutual_information(np.minimum(part, bin_rows), bin_rows)
        mean[start : start + 512], var[start : start + 512] = null.mean(axis=1), null.var(axis=1, ddof=1)
    return observed - mean, gamma_upper(observed, mean, var)


def first_share(keeper: Keeper, cache: Cache) -> NDArray[np.float64]:
    """Share of each latent's kept entries that lie at position 0 [F]; NaN where none is kept."""
    kept = keeper.kept
    with np.errstate(invalid="ignore"):
        return np.where(kept > 0, _kept_first(keeper, cache) / kept, np.nan)


def pooled_first_share(keeper: Keeper, cache: Cache) -> float | None:
    """The same over all latents' entries together; None where none is kept."""
    kept = int(keeper.kept.sum())
    return int(_kept_first(keeper, cache).sum()) / kept if kept else None


def _kept_first(keeper: Keeper, cache: Cache) -> NDArray[np.int64]:
    """How many of each latent's kept entries lie at position 0 [F]."""
    position = positions(keeper.row, cache.flags.reshape(-1)[keeper.row], cache.ctx)
    counts: NDArray[np.int64] = ((position == 0) & (keeper.score > 0)).sum(axis=1)
    return counts
