"""Which sites a latent writes: shares of its decoder norms, and the relative norm of two sites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import CrosscoderConfig

Doubles = NDArray[np.float64]
CLASSES = ("first", "shared", "second", "between")


@dataclass(frozen=True)
class Norms:
    """Decoder norms of F latents at L sites, in the normalised space of each site.

    Attributes:
        norms: [F, L].
        fired: [F] rows on which each latent fires, excluding position 0.
        n_rows: rows excluding position 0.
    """

    norms: Doubles
    fired: NDArray[np.int64]
    n_rows: int

    @property
    def alive(self) -> NDArray[np.bool_]:
        """[F] latents that fire and write."""
        alive: NDArray[np.bool_] = (self.fired > 0) & (self.norms.sum(axis=1) > 0)
        return alive

    @property
    def shares(self) -> Doubles:
        """[F, L] each norm over the sum of the latent's norms."""
        total = self.norms.sum(axis=1, keepdims=True)
        return self.norms / np.where(total > 0, total, 1.0)

    @property
    def peak(self) -> NDArray[np.int64]:
        """[F] the site at which the latent's row is longest."""
        peak: NDArray[np.int64] = self.norms.argmax(axis=1)
        return peak

    @property
    def spread(self) -> Doubles:
        """[F] e to the entropy of the shares: 1 for a latent of one site, L for one of all sites alike."""
        shares = self.shares
        logs = np.log(np.where(shares > 0, shares, 1.0))
        spread: Doubles = np.exp(-(shares * logs).sum(axis=1))
        return spread

    @property
    def relative(self) -> Doubles:
        """[F] of two sites ½(1 + (‖w²‖ − ‖w¹‖)/max(‖w¹‖, ‖w²‖)): 0 first site only, ½ both alike, 1 second only."""
        first, second = self.norms[:, 0], self.norms[:, 1]
        largest = np.maximum(first, second)
        relative: Doubles = 0.5 * (1 + (second - first) / np.where(largest > 0, largest, 1.0))
        return relative

    def classes(self, config: CrosscoderConfig) -> NDArray[np.str_]:
        """[F] of two sites: first, shared, second or between; "dead" for a latent that does not fire."""
        relative, edge = self.relative, config.exclusive_above
        found = np.full(len(relative), "between", dtype="<U7")
        found[np.abs(relative - 0.5) <= config.shared_within] = "shared"
        found[relative >= edge] = "second"
        found[relative <= 1 - edge] = "first"
        found[~self.alive] = "dead"
        return found

    def dense(self, config: CrosscoderConfig) -> NDArray[np.bool_]:
        """[F] latents that fire on more than `dense_above` of the rows."""
        dense: NDArray[np.bool_] = self.fired / max(1, self.n_rows) > config.dense_above
        return dense
