"""The codes of a batch of rows: which latents fire, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .ops import LatentLists, sparse_decode


class Entries(NamedTuple):
    """The active codes as coordinates; all three are [n_active]."""

    row: Tensor
    latent: Tensor
    value: Tensor


@dataclass(frozen=True)
class Codes:
    """Codes of B rows over `n_latents` latents.

    Sparse (`latents` given): values [B, K] ≥ 0, latents [B, K] int64. A value of 0 marks an inactive slot; its latent
    id is then meaningless, but in range. An active latent occurs once per row.
    Dense (`latents` None): values [B, n_latents] ≥ 0.

    Every method that returns values is differentiable with respect to `values`.
    """

    values: Tensor
    latents: Tensor | None
    n_latents: int
    lists: LatentLists | None = field(default=None, repr=False, compare=False)
    """Which entries belong to which latent; shared by the backward passes of encode and decode."""

    @property
    def n_rows(self) -> int:
        return int(self.values.shape[0])

    def detach(self) -> Codes:
        """The same codes, cut from the graph."""
        return Codes(self.values.detach(), self.latents, self.n_latents, self.lists)

    def dense(self) -> Tensor:
        """Codes as one matrix [B, F]."""
        if self.latents is None:
            return self.values
        # Inactive slots carry 0, so adding is right even where a padded slot repeats a latent.
        return self.values.new_zeros(self.n_rows, self.n_latents).scatter_add(1, self.latents, self.values)

    def columns(self, ids: Tensor) -> Tensor:
        """Codes of the latents `ids` [m] (distinct) as a matrix [B, m], without forming [B, F]."""
        if self.latents is None:
            return self.values[:, ids]
        n_columns = ids.shape[0]
        column_of = torch.full((self.n_latents,), n_columns, dtype=torch.int64, device=ids.device)
        column_of[ids] = torch.arange(n_columns, device=ids.device)
        # Entries of other latents land in one spare column, which is cut off.
        spare = self.values.new_zeros(self.n_rows, n_columns + 1)
        return spare.scatter_add(1, column_of[self.latents], self.values)[:, :n_columns]

    def decode(self, w_dec: Tensor) -> Tensor:
        """Σ_i z_i w_i for each row: [B, d_out] from w_dec [F, d_out]."""
        if self.latents is None:
            return self.values @ w_dec
        return sparse_decode(self.values, self.latents, w_dec, self.lists)

    def l0(self) -> Tensor:
        """How many latents fire on each row: [B] int64."""
        return (self.values > 0).sum(dim=1)

    def fired(self) -> Tensor:
        """Which latents fire on at least one row: [F] bool."""
        active = self.values > 0
        if self.latents is None:
            return active.any(dim=0)
        # a place more, for inactive slots: choosing the active ones would make the host wait for their number
        mask = torch.zeros(self.n_latents + 1, dtype=torch.bool, device=self.values.device)
        return mask.scatter_(0, torch.where(active, self.latents, self.n_latents).reshape(-1), True)[:-1]

    def firing_counts(self, weight: Tensor | None = None) -> Tensor:
        """How many rows each latent fires on: [F] int64; with `weight` [B], the sum of those rows' weights in
        float64."""
        active = self.values > 0
        if self.latents is None:
            if weight is None:
                return active.sum(dim=0)
            return active.to(torch.float64).T @ weight.to(torch.float64)
        if weight is None:
            return torch.bincount(self.latents[active], minlength=self.n_latents)
        weights = weight.to(torch.float64).unsqueeze(1).expand_as(self.values)[active]
        return torch.bincount(self.latents[active], weights=weights, minlength=self.n_latents)

    def entries(self) -> Entries:
        """The active codes as (row, latent, value), rows ascending."""
        row, slot = (self.values > 0).nonzero(as_tuple=True)
        latent = slot if self.latents is None else self.latents[row, slot]
        return Entries(row, latent, self.values[row, slot])
