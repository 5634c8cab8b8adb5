"""Where latents fire: bins of the sequence, the null of circular shifts, and every measure with its test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ....shared.cache import Cache, positions
from ....shared.codes.positions import position_bins
from ....shared.codes.statistics import (
    benjamini_hochberg,
    binomial_upper,
    gamma_upper,
    kl_to_base,
    mutual_information,
    spearman_rows,
)
from ...stream.batches import ShardRows
from ...stream.keep import Keeper

if TYPE_CHECKING:
    from .report import Position

PROFILE_BINS = 1020
"""Positions after 0 are told apart one by one up to this many, above that in so many equal bins (a multiple of ten)."""

LEFT_OUT = 65535
"""Marks a row that the circular shifts leave out."""


def profile_bins(ctx: int) -> NDArray[np.int32]:
    """Bin of each position [ctx]: 0 for position 0, then one bin for each position, or PROFILE_BINS equal ones."""
    return coarse_bins(ctx, PROFILE_BINS)


def coarse_bins(n_profile: int, bins: int) -> NDArray[np.int32]:
    """Bin of each profile bin [n_profile]: 0 for position 0, then `bins` equal ones (as many as there are
    positions).
    """
    bins = min(bins, max(1, n_profile - 1))
    return position_bins(np.arange(n_profile, dtype=np.int64), n_profile, bins).astype(np.int32)


def shift_slots(
    rows: ShardRows,
    shifts: int,
    skip: int,
    to_bin: NDArray[np.int32],
    n_bins: int,
    rng: np.random.Generator,
) -> NDArray[np.uint16]:
    """For each row and replicate, replicate · n_bins + the bin that the row's position is rotated into [R, shifts].

    Every sequence is rotated by its own uniform amount, over its kept rows in order: a firing moves to the position of
    another row. With skip 1 the rows at position 0 are left out, a BOS within the sequence too.

    Args:
        to_bin: [ctx] bin of each position, counted from 0 for position 0; with skip 1 the bins are counted from 1.
    """
    position = rows.position.reshape(-1, rows.ctx)
    inside = rows.keep.reshape(-1, rows.ctx) & (position >= skip)
    length = inside.sum(axis=1)
    shift = rng.integers(0, np.maximum(length, 1)[:, None], (len(length), shifts))
    # rows that count come first, in order
    kept = np.take_along_axis(position, np.argsort(~inside, axis=1, kind="stable"), axis=1)
    rank = np.maximum(np.cumsum(inside, axis=1) - 1, 0)
    rotated = (rank[:, :, None] + shift[:, None, :]) % np.maximum(length, 1)[:, None, None]
    bins = to_bin[kept][np.arange(len(kept))[:, None, None], rotated]
    slot = (bins - skip + np.arange(shifts) * n_bins).astype(np.uint16)
    slot[~inside] = LEFT_OUT
    by_row: NDArray[np.uint16] = slot.reshape(len(rows), shifts)
    return by_row


@dataclass(frozen=True)
class PositionScores:
    """Per latent, all [F]; NaN where not scored.

    Attributes:
        scored: fires on ≥ min_fired rows. scored_rest: the same, position 0 left out.
        share, enrichment, p, q: position 0: share of firings, (n_i0/n_i)/(N_0/N), exact binomial test, corrected.
        bos: BOS-biased. top, top_distinct: share of its top activations at position 0, raw and without repeats.
        kl, kl_all: bits from the base rate, position 0 left out and counted in.
        mi, mi_all: mutual information with position beyond the circular shifts' mean; mi_q corrected.
        biggest: share of its firings after position 0 in its fullest bin, and which bin (1 …).
        biased: position-biased. spearman, spearman_all: ρ of mean activation with position.
    """

    scored: NDArray[np.bool_]
    scored_rest: NDArray[np.bool_]
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
    mi_q: NDArray[np.float64]
    biggest: NDArray[np.float64]
    biggest_bin: NDArray[np.int64]
    biased: NDArray[np.bool_]
    spearman: NDArray[np.float64]
    spearman_all: NDArray[np.float64]
    bins: NDArray[np.int64]
    bin_rows: NDArray[np.int64]


def score(report: Position) -> PositionScores:
    """Every measure and test."""
    config, n_bins = report.config, report.n_bins
    bins = np.zeros((len(report.counts), n_bins), np.int64)
    bin_rows = np.zeros(n_bins, np.int64)
    for b in range(n_bins):
        bins[:, b] = report.counts[:, report.coarse_of == b].sum(axis=1)
        bin_rows[b] = report.rows[report.coarse_of == b].sum()
    n, total = bins.sum(axis=1), max(1, int(bin_rows.sum()))
    rest, rest_total = bins[:, 1:], max(1, int(bin_rows[1:].sum()))
    n_rest = rest.sum(axis=1)
    scored, scored_rest = n >= config.min_fired, n_rest >= config.min_fired

    def only(mask: NDArray[np.bool_], values: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.where(mask, values, np.nan)

    base = bin_rows[0] / total
    with np.errstate(divide="ignore", invalid="ignore"):
        share = only(scored, bins[:, 0] / n)
        enrichment = share / base if base > 0 else np.full(len(n), np.nan)
        biggest = only(scored_rest, rest.max(axis=1) / n_rest)
        mean, mean_rest = report.sums / report.rows, report.sums[:, 1:] / report.rows[1:]
    p = only(scored, binomial_upper(bins[:, 0], n, base))
    q = benjamini_hochberg(p)
    mi, mi_p = _excess(rest, bin_rows[1:], report.shifted, config.shifts)
    mi_all, _ = _excess(bins, bin_rows, report.shifted_all, config.shifts)
    mi_q = benjamini_hochberg(only(scored_rest, mi_p))
    return PositionScores(
        scored,
        scored_rest,
        share,
        enrichment,
        p,
        q,
        (q < config.q) & (share > config.bos_share) & (enrichment > config.bos_enrichment),
        first_share(report.top, report.subject.cache),
        first_share(report.top_distinct, report.subject.cache),
        only(scored_rest, kl_to_base(rest, bin_rows[1:] / rest_total)),
        only(scored, kl_to_base(bins, bin_rows / total)),
        only(scored_rest, mi),
        only(scored, mi_all),
        mi_q,
        biggest,
        rest.argmax(axis=1) + 1,
        (mi_q < config.q) & (biggest > config.bin_share),
        only(scored_rest, spearman_rows(mean_rest[:, report.rows[1:] > 0])),
        only(scored, spearman_rows(mean[:, report.rows > 0])),
        bins,
        bin_rows,
    )


def _excess(
    bins: NDArray[np.int64], bin_rows: NDArray[np.int64], shifted: NDArray[np.int32], shifts: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mutual information minus the mean of its circular shifts, p) per latent."""
    observed = mutual_information(bins, bin_rows)
    mean, var = np.empty(len(bins)), np.empty(len(bins))
    for start in range(0, len(bins), 512):
        part = shifted[start : start + 512].reshape(-1, shifts, bins.shape[1])
        # A rotation of a padded sequence can put more firings into a bin than rows lie there.
        null = mutual_information(np.minimum(part, bin_rows), bin_rows)
        mean[start : start + 512], var[start : start + 512] = null.mean(axis=1), null.var(axis=1, ddof=1)
    return observed - mean, gamma_upper(observed, mean, var)


def first_share(keeper: Keeper, cache: Cache) -> NDArray[np.float64]:
    """Share of each latent's kept entries that lie at position 0 [F]; NaN where none is kept."""
    kept = keeper.kept
    with np.errstate(invalid="ignore"):
        return np.where(kept > 0, kept_first(keeper, cache) / kept, np.nan)


def kept_first(keeper: Keeper, cache: Cache) -> NDArray[np.int64]:
    """How many of each latent's kept entries lie at position 0 [F]."""
    position = positions(keeper.row, cache.flags.reshape(-1)[keeper.row], cache.ctx)
    counts: NDArray[np.int64] = ((position == 0) & (keeper.score > 0)).sum(axis=1)
    return counts
