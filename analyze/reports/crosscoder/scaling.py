"""Latent scaling: how much of a latent's direction is in the other site after all (Minder et al. 2025, 2504.02922).

Let d be the decoder row of latent j at the site where it is longer ("own"), and z its code. For rows y of any kind,
β(y) = argmin_β Σ ‖β z d − y‖² = Σ z ⟨d, y⟩ / (‖d‖² Σ z²). With the reconstruction errors of a site, to which what j
itself adds there is given back, y = ε + z w_j:

    ν_error = β(ε of the other site) / β(ε of the own site)

Near 0 the other site has nothing left along d when the latent fires; near 1 the concept is there just as strongly, and
only the decoder row is missing (complete shrinkage). With the latents' sum Σ_i z_i w_i of each site,

    ν_reconstruction = β(Σ_i z_i w_i of the other site) / β(Σ_i z_i w_i of the own site)

is large where other latents write the same direction into the other site at the same time (latent decoupling).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....shared.coders.ops import bag_dot
from ....shared.codes.sparse import SparseCodes

Doubles = NDArray[np.float64]


@dataclass
class Scaling:
    """Sums over rows for each of F latents.

    Attributes:
        squares: Σ z².
        error: [2, F] Σ z ⟨d, ε⟩ at the own and at the other site, ε the plain error.
        sum: [2, F] Σ z ⟨d, Σ_i z_i w_i⟩ at both.
    """

    squares: Doubles
    error: Doubles
    sum: Doubles

    @classmethod
    def empty(cls, latents: int) -> Scaling:
        """No rows yet."""
        return cls(np.zeros(latents), np.zeros((2, latents)), np.zeros((2, latents)))

    def add(self, codes: SparseCodes, errors: Tensor, sums: Tensor, rows: Tensor, own: NDArray[np.int64]) -> None:
        """Adds R rows.

        Args:
            codes: [R, F].
            errors, sums: [R, 2, d] y − ŷ and ŷ − b of the two sites, raw.
            rows: [F, d] raw decoder row of each latent at its own site.
            own: [F] which of the two sites that is.
        """
        if not len(codes.latents):
            return
        n, z, latents = len(self.squares), codes.values.astype(np.float64), codes.latents.astype(np.int64)
        ids, offsets = torch.from_numpy(latents), torch.from_numpy(codes.indptr[:-1])
        self.squares += np.bincount(latents, z * z, n)
        at_own = own[latents]
        for target, given in ((self.error, errors), (self.sum, sums)):
            both = [bag_dot(given[:, site], rows, ids=ids, offsets=offsets).double().numpy() for site in (0, 1)]
            target[0] += np.bincount(latents, z * np.where(at_own == 0, both[0], both[1]), n)
            target[1] += np.bincount(latents, z * np.where(at_own == 0, both[1], both[0]), n)

    def merge(self, other: Scaling) -> None:
        """Adds the rows that another collector has seen."""
        self.squares += other.squares
        self.error += other.error
        self.sum += other.sum

    def ratios(self, own: Doubles, other: Doubles) -> tuple[Doubles, Doubles]:
        """(ν of the errors, ν of the reconstruction) [F]; NaN for a latent that never fired.

        Args:
            own, other: [F, d] raw decoder rows of each latent at its own site and at the other one.
        """
        ours = self.error[0] + self.squares * (own * own).sum(axis=1)
        theirs = self.error[1] + self.squares * (own * other).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return theirs / ours, self.sum[1] / self.sum[0]
