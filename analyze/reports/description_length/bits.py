"""Bits of codes that are rounded to bins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.sparse import SparseCodes

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Rounded:
    """The codes of R rows with each latent's activations in equal bins from 0 to its largest one.

    Attributes:
        bits: per row, Σ over latents of the entropy of (does it fire, and if so in which bin).
        bits_as_saebench: the same as SAEBench counts it (its evals/mdl): Σ H(fires) + p · H(bin), with
            the bins of *all* rows, so that rows on which the latent is silent fill its first bin.
        values: [E] the middle of each entry's bin.
    """

    bits: float
    bits_as_saebench: float
    values: NDArray[np.float32]


def rounded(codes: SparseCodes, bins: int) -> Rounded:
    """Rounds codes to `bins` bins for each latent, and counts the bits that they then take."""
    rows, n = len(codes.indptr) - 1, codes.n_latents
    top = np.zeros(n)
    np.maximum.at(top, codes.latents, codes.values.astype(np.float64))
    width = top / bins
    place = np.minimum((codes.values / width[codes.latents]).astype(np.int64), bins - 1)
    counts = np.bincount(codes.latents * np.int64(bins) + place, minlength=n * bins).reshape(n, bins)
    fired = counts.sum(axis=1)
    p = fired / rows
    which = _entropy(np.stack([p, 1 - p], axis=1))
    strength = _entropy(counts / np.maximum(fired, 1)[:, None])
    everywhere = counts / rows
    everywhere[:, 0] += 1 - p
    middle = ((place + 0.5) * width[codes.latents]).astype(np.float32)
    return Rounded(float((which + p * strength).sum()), float((which + p * _entropy(everywhere)).sum()), middle)


def _entropy(shares: Doubles) -> Doubles:
    """−Σ p log₂ p of each row of shares; 0 of a row of zeros."""
    logs = np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    bits: Doubles = -(shares * logs).sum(axis=1)
    return bits
