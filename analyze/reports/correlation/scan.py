"""Correlated pairs: r of every pair of latents from their exact sums, and what is worth naming among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.moments import CodeMoments
from ....shared.hashing import mix
from ...subject.geometry import Geometry
from .kernels import scan_pairs
from .pair_sums import FirstRows, PairBlock, PairSums

if TYPE_CHECKING:
    from .report import CorrelationConfig

BINS = 100
"""Bins of the histogram of r over −1 … 1."""


@dataclass(frozen=True)
class Scan:
    """What one pass over a triangle of pair sums finds.

    Attributes:
        n_above: pairs beyond the threshold; pairs [P, 2] and r [P] hold the first max_pairs of them.
        histogram: [BINS] of r over −1 … 1; n_pairs of them were scored.
        near, near_r: [F, m] most correlated latents, r = −2 where there are fewer.
    """

    n_above: int
    pairs: NDArray[np.int32]
    r: NDArray[np.float64]
    histogram: NDArray[np.int64]
    near: NDArray[np.int32]
    near_r: NDArray[np.float32]

    @property
    def n_pairs(self) -> int:
        return int(self.histogram.sum())


def scan(blocks: Iterable[PairBlock], moments: CodeMoments, config: CorrelationConfig, neighbours: int) -> Scan:
    """r of all pairs, block by block."""
    n_latents = len(moments.n)
    histogram = np.zeros(BINS, np.int64)
    near_r = np.full((n_latents, neighbours), -2.0, np.float32)
    near = np.full((n_latents, neighbours), -1, np.int32)
    pairs, r, total, room = [], [], 0, config.max_pairs
    spread = moments.spread
    for block in blocks:
        capacity = min(room, 1 << 16)
        while True:
            found_pairs, found_r = np.empty((capacity, 2), np.int32), np.empty(capacity)
            # A second try starts from the same state; only the capacity differs.
            state = histogram.copy(), near_r.copy(), near.copy()
            found = scan_pairs(
                block.sums, block.counts, block.first, float(moments.rows), moments.n, moments.sum, spread,
                config.min_fired, config.min_both, config.threshold, state[0], found_pairs, found_r, state[1], state[2],
            )  # fmt: skip
            if found <= capacity or capacity == room:
                break
            capacity = min(room, found)
        histogram, near_r, near = state
        total += found
        listed = min(found, capacity)
        room -= listed
        pairs.append(found_pairs[:listed])
        r.append(found_r[:listed])
    return Scan(total, np.concatenate(pairs), np.concatenate(r), histogram, near, near_r)


@dataclass(frozen=True)
class PairTable:
    """Every pair worth naming: |r| above the threshold, or decoder rows (anti)parallel; all arrays [P], position 0
    left out
    but for r_with_bos.
    """

    ids: NDArray[np.int32]
    r: NDArray[np.float64]
    r_with_bos: NDArray[np.float64]
    both: NDArray[np.int64]
    jaccard: NDArray[np.float64]
    p_j_given_i: NDArray[np.float64]
    p_i_given_j: NDArray[np.float64]
    cos: NDArray[np.float32]
    kind: NDArray[np.str_]
    duplicate: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        found: Scan,
        pairs: PairSums,
        first_rows: FirstRows,
        rest: CodeMoments,
        first: CodeMoments,
        geometry: Geometry,
        config: CorrelationConfig,
    ) -> PairTable:
        """Kinds (cos is the decoder's):

        structural      r above the threshold, cos ≥ cos_structural: two copies of one direction
        functional      r above the threshold, cos below that: different directions that always come together
        anticorrelated  r below −threshold
        split           cos ≥ cos_duplicate, |r| < split_r: one direction shared out between latents
        antipodal       cos ≤ −cos_duplicate
        parallel        cos ≥ cos_duplicate and neither a split nor above the threshold
        """
        n = rest.n
        scored = n[geometry.close].min(axis=1, initial=np.iinfo(np.int64).max) >= config.min_fired
        close = geometry.close[scored & (np.abs(geometry.close_cos) >= config.cos_duplicate)]
        size = np.int64(len(n))
        keys = np.unique(np.concatenate([both[:, 0] * size + both[:, 1] for both in (found.pairs, close)]))
        ids = np.stack([keys // size, keys % size], axis=1).astype(np.int32)
        i, j = ids[:, 0], ids[:, 1]
        sums, both = pairs.lookup(i, j)
        r = rest.pearson(i, j, sums)
        first_sums, _ = first_rows.lookup(i, j)
        r_with_bos = (rest + first).pearson(i, j, sums + first_sums)
        cos = geometry.cosine(i, j)
        with np.errstate(invalid="ignore", divide="ignore"):
            jaccard = both / (n[i] + n[j] - both)
            p_j, p_i = both / n[i], both / n[j]
        above = (np.abs(r) > config.threshold) & (both >= config.min_both)
        kind = np.select(
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
        duplicate = (above & (r >= config.threshold)) | (
            (cos >= config.cos_duplicate) & (jaccard >= config.jaccard_duplicate) & (both >= config.min_both)
        )
        return cls(ids, r, r_with_bos, both, jaccard, p_j, p_i, cos, kind, duplicate)

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
            "decoder_cosine": self.cos[order],
            "fired_i": fired[i],
            "fired_j": fired[j],
            "fired_both": self.both[order],
            "jaccard": self.jaccard[order],
            "p_j_given_i": self.p_j_given_i[order],
            "p_i_given_j": self.p_i_given_j[order],
        }


@dataclass(frozen=True)
class Neighbours:
    """The most correlated latents of each, strongest first, position 0 left out; all arrays [F, m].

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
    def of(cls, found: Scan, pairs: PairSums, rest: CodeMoments, geometry: Geometry) -> Neighbours:
        shape = found.near.shape
        i = np.repeat(np.arange(shape[0]), shape[1])
        j = np.where(found.near >= 0, found.near, 0).reshape(-1)
        _, both = pairs.lookup(i, j)
        with np.errstate(invalid="ignore", divide="ignore"):
            jaccard, p_other = both / (rest.n[i] + rest.n[j] - both), both / rest.n[i]
        cos = geometry.cosine(i, j).reshape(shape)
        return cls(found.near, found.near_r, both.reshape(shape), jaccard.reshape(shape), p_other.reshape(shape), cos)

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


def null_sample(n_latents: int, limit: int) -> NDArray[np.int32]:
    """At most `limit` latents, ascending, the same ones in every process."""
    if n_latents <= limit:
        return np.arange(n_latents, dtype=np.int32)
    order = np.argsort(mix(np.arange(n_latents, dtype=np.uint64)))
    return np.sort(order[:limit]).astype(np.int32)


def sorted_top_correlation(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """ "Correlation" of each pair of latents' sorted top values [m, t]: what makes unrelated latents look alike.

    Two descending lists of three numbers correlate highly whatever they are: the null of independent exponentials has a
    median of 0.956.
    """
    centred = values - values.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1)
    unit = centred[norm > 0] / norm[norm > 0][:, None]
    r: NDArray[np.float64] = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return r
