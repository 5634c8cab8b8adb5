"""The moments that a coder's normalisation is made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..shared.cache import Cache
from ..shared.cache.rows import rest_rows
from ..shared.coders.configs.base import Normalise
from ..shared.coders.normalisation import SiteMoments
from ..shared.joint_names import parts_of
from .data.rows import thin

COVARIANCE_ROWS = 1 << 18
"""Rows that the covariance is estimated from at most, spread evenly over the cache. The variance of a direction is then
known to about √(2/n) = 0.3 %, were rows independent and Gaussian."""

ROWS_AT_ONCE = 8192


def moments_of(cache: Cache, site: str, normalise: Normalise) -> SiteMoments:
    """Moments of a site for one kind of normalisation.

    A scalar is taken from all rows outside position 0. Where dimensions are told apart, massive rows would decide about
    the few dimensions in which they lie, so those are taken from ordinary rows. Each part of a joint site has its own.
    """
    if len(parts := parts_of(site)) > 1:
        return joined_moments([moments_of(cache, part, normalise) for part in parts])
    if normalise == "scalar":
        rest = cache.stats(site).rest
        return SiteMoments(torch.from_numpy(rest.mean), torch.from_numpy(rest.var))
    ordinary = cache.outliers(site).ordinary
    mean, var = torch.from_numpy(ordinary.mean), torch.from_numpy(ordinary.var)
    return SiteMoments(mean, var, covariance(cache, site, mean) if normalise == "whiten" else None)


def joined_moments(parts: Sequence[SiteMoments]) -> SiteMoments:
    """Moments of a joint site, without the covariances between its parts."""
    blocks = [one.covariance for one in parts if one.covariance is not None]
    return SiteMoments(
        torch.cat([one.mean for one in parts]),
        torch.cat([one.var for one in parts]),
        torch.block_diag(*blocks) if blocks else None,  # type: ignore[no-untyped-call]
    )


def covariance(cache: Cache, site: str, mean: torch.Tensor, rows: int = COVARIANCE_ROWS) -> torch.Tensor:
    """Covariance of the ordinary rows about their mean, [d, d] float64.

    Args:
        mean: [d] float64.
        rows: at most this many, spread evenly over the cache.
    """
    counted = rest_rows(cache.flags, cache.ctx).reshape(-1)
    counted[cache.outliers(site).rows] = False
    chosen = thin(np.flatnonzero(counted), rows)
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    seen = 0
    for start in range(0, len(chosen), ROWS_AT_ONCE):
        x = cache.rows(site, chosen[start : start + ROWS_AT_ONCE]).double() - mean
        x = x[torch.isfinite(x).all(dim=1)]
        total += x.T @ x
        seen += len(x)
    return total / max(seen, 1)
