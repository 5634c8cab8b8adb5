"""Pairs with a name: correlated or (anti)parallel ones with their kind, and each latent's most correlated others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.moments import CodeMoments
from ...subject.geometry import Geometry
from .config import CorrelationConfig
from .counted import Counted
from .scan import Scan


@dataclass(frozen=True)
class PairTable:
    """Every pair worth naming: |r| above the threshold, or decoder rows (anti)parallel.

    All arrays are [P] and exclude position 0, except r_with_bos. r_without_massive excludes massive rows too; NaN
    where there are none.

    Attributes:
        ids: [P, 2] latents i < j.
        both: rows on which both fire. jaccard: of those on which at least one does.
        cos: of the decoder rows.
        kind: see :func:`kinds`. duplicate: counts as two copies of one thing.
    """

    ids: NDArray[np.int32]
    r: NDArray[np.float64]
    r_with_bos: NDArray[np.float64]
    r_without_massive: NDArray[np.float64]
    both: NDArray[np.int64]
    jaccard: NDArray[np.float64]
    p_j_given_i: NDArray[np.float64]
    p_i_given_j: NDArray[np.float64]
    cos: NDArray[np.float32]
    kind: NDArray[np.str_]
    duplicate: NDArray[np.bool_]

    @classmethod
    def of(cls, found: Scan, counted: Counted, geometry: Geometry, config: CorrelationConfig) -> PairTable:
        """The pairs that the scan listed, and those whose decoder rows are close, with all that is known of them."""
        rest, n = counted.rest, counted.rest.n
        ids = _candidates(found, geometry, n, config)
        i, j = ids[:, 0], ids[:, 1]
        sums, both = counted.pairs.lookup(i, j)
        first_sums, _ = counted.first_rows.lookup(i, j)
        r = rest.pearson(i, j, sums)
        cos = geometry.cosine(i, j)
        with np.errstate(invalid="ignore", divide="ignore"):
            jaccard = both / (n[i] + n[j] - both)
            p_j, p_i = both / n[i], both / n[j]
        above = (np.abs(r) > config.threshold) & (both >= config.min_both)
        parallel = (cos >= config.cos_duplicate) & (jaccard >= config.jaccard_duplicate) & (both >= config.min_both)
        return cls(
            ids=ids,
            r=r,
            r_with_bos=(rest + counted.first).pearson(i, j, sums + first_sums),
            r_without_massive=_without_massive(counted, i, j, sums),
            both=both,
            jaccard=jaccard,
            p_j_given_i=p_j,
            p_i_given_j=p_i,
            cos=cos,
            kind=kinds(r, cos, above, config),
            duplicate=(above & (r >= config.threshold)) | parallel,
        )

    def columns(self, fired: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """For Parquet, strongest first."""
        order = np.argsort(-np.abs(self.r), kind="stable")
        i, j = self.ids[order, 0], self.ids[order, 1]
        return {
            "i": i,
            "j": j,
            "kind": self.kind[order],
            "duplicate": self.duplicate[order],
            "r": self.r[order],
            "r_with_bos": self.r_with_bos[order],
            "r_without_massive": self.r_without_massive[order],
            "decoder_cosine": self.cos[order],
            "fired_i": fired[i],
            "fired_j": fired[j],
            "fired_both": self.both[order],
            "jaccard": self.jaccard[order],
            "p_j_given_i": self.p_j_given_i[order],
            "p_i_given_j": self.p_i_given_j[order],
        }


def _without_massive(
    counted: Counted, i: NDArray[np.int32], j: NDArray[np.int32], sums: NDArray[np.float64]
) -> NDArray[np.float64]:
    """r of pairs [P] excluding position 0 and massive rows, from their Σ z_i z_j excluding position 0; NaN without
    massive rows."""
    if not counted.massive.rows:
        return np.full(len(i), np.nan)
    massive_sums, _ = counted.massive_rows.lookup(i, j)
    return (counted.rest - counted.massive).pearson(i, j, sums - massive_sums)


def _candidates(
    found: Scan, geometry: Geometry, fired: NDArray[np.int64], config: CorrelationConfig
) -> NDArray[np.int32]:
    """[P, 2] i < j, ascending, each once: pairs above the threshold, and close ones of latents that fire enough."""
    fewest = fired[geometry.close].min(axis=1, initial=np.iinfo(np.int64).max)
    close = geometry.close[(fewest >= config.min_fired) & (np.abs(geometry.close_cos) >= config.cos_duplicate)]
    size = np.int64(len(fired))
    keys = np.unique(np.concatenate([both[:, 0] * size + both[:, 1] for both in (found.pairs, close)]))
    return np.stack([keys // size, keys % size], axis=1).astype(np.int32)


def kinds(
    r: NDArray[np.float64], cos: NDArray[np.float32], above: NDArray[np.bool_], config: CorrelationConfig
) -> NDArray[np.str_]:
    """What each pair [P] is; the first row that fits names it.

    anticorrelated  r below −threshold
    structural      r above the threshold, cos ≥ cos_structural: two copies of one direction
    functional      r above the threshold, cos below that: different directions that always come together
    antipodal       cos ≤ −cos_duplicate
    split           cos ≥ cos_duplicate, |r| < split_r: one direction shared out between latents
    parallel        cos ≥ cos_duplicate and neither a split nor above the threshold

    Args:
        r: Pearson's, excluding position 0. cos: of the decoder rows.
        above: |r| is above the threshold and both fire together often enough.
    """
    return np.select(
        [
            above & (r < 0),
            above & (cos >= config.cos_structural),
            above,
            cos <= -config.cos_duplicate,
            np.abs(r) < config.split_r,
        ],
        ["anticorrelated", "structural", "functional", "antipodal", "split"],
        "parallel",
    )


@dataclass(frozen=True)
class Neighbours:
    """The most correlated latents of each, strongest first, excluding position 0; all arrays [F, m].

    Attributes:
        other: their numbers, −1 where there are fewer. r, both, jaccard, cos: of the pair.
        p_other: P(other fires | this one fires).
    """

    other: NDArray[np.int32]
    r: NDArray[np.float32]
    both: NDArray[np.int64]
    jaccard: NDArray[np.float64]
    p_other: NDArray[np.float64]
    cos: NDArray[np.float32]

    @classmethod
    def of(cls, found: Scan, rest: CodeMoments, geometry: Geometry) -> Neighbours:
        """The neighbours that the scan kept, with how often they fire together and how their decoder rows lie."""
        shape = found.near.shape
        i = np.repeat(np.arange(shape[0]), shape[1])
        j = np.where(found.near >= 0, found.near, 0).reshape(-1)  # −1: computed with latent 0, never shown
        both = found.near_both.reshape(-1).astype(np.int64)
        with np.errstate(invalid="ignore", divide="ignore"):
            jaccard, p_other = both / (rest.n[i] + rest.n[j] - both), both / rest.n[i]
        return cls(
            other=found.near,
            r=found.near_r,
            both=both.reshape(shape),
            jaccard=jaccard.reshape(shape),
            p_other=p_other.reshape(shape),
            cos=geometry.cosine(i, j).reshape(shape),
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """For Parquet: by latent, strongest first."""
        latent, rank = np.nonzero(self.other >= 0)
        at = (latent, rank)
        return {
            "latent": latent.astype(np.int32),
            "rank": rank.astype(np.int32) + 1,
            "neighbour": self.other[at],
            "r": self.r[at],
            "decoder_cosine": self.cos[at],
            "fired_both": self.both[at],
            "jaccard": self.jaccard[at],
            "p_neighbour_given_latent": self.p_other[at],
        }
