"""Several sites read as one: their activations side by side, [rows, d_1 + d_2 + …].

Such a joint site is named after its parts, joined by `+`: `layer_05.resid_mid+layer_09.resid_mid`. It is not stored: a
cache makes its rows and statistics from those of its parts.

The variance of a residual stream grows with the layer, so that a plain sum of squares over a joint site would be about
its last part. Where a single number is made of all parts (an FVU, a share of variance), each part is divided by the
root of its mean variance per dimension first, and all parts count alike: `balance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .format import SiteSpec
from .outliers import SiteOutliers
from .stats import Moments, SiteStats, Vector


def joined(rows: Sequence[Tensor]) -> Tensor:
    """Rows [n, d] of several sites side by side; in float32 where their dtypes differ."""
    if len(rows) == 1:
        return rows[0]
    same = len({one.dtype for one in rows}) == 1
    return torch.cat([one if same else one.float() for one in rows], dim=1)


def joint_spec(site: str, parts: Sequence[SiteSpec]) -> SiteSpec:
    """The description of a joint site: its width and dtype; it is of no layer, module or kind."""
    dtypes = {spec.logical_dtype for spec in parts}
    return SiteSpec(site, sum(spec.width for spec in parts), dtypes.pop() if len(dtypes) == 1 else "float32")


def joint_stats(parts: Sequence[SiteStats]) -> SiteStats:
    """Moments of a joint site: those of its parts side by side.

    Σ‖x‖² adds up. Σ‖x‖ does not follow from the parts' sums and is NaN, as are the norms by position.
    """
    first = parts[0]
    return SiteStats(
        _moments([one.first for one in parts]),
        _moments([one.rest for one in parts]),
        first.position_n,
        np.full_like(first.position_sum_norm, np.nan),
        sum(one.nonfinite for one in parts),
    )


@dataclass(frozen=True)
class JointOutliers(SiteOutliers):
    """Massive rows and outlying dimensions of a joint site: those of any part.

    `ordinary` has the moments of each part over its own ordinary rows, so that each part is normalised as alone.
    """

    parts: tuple[SiteOutliers, ...] = ()

    @property
    def share_of_variance(self) -> float:
        """Mean over the parts."""
        return sum(one.share_of_variance for one in self.parts) / len(self.parts)

    @property
    def dimensions_share(self) -> float:
        """Mean over the parts."""
        return sum(one.dimensions_share for one in self.parts) / len(self.parts)


def joint_outliers(parts: Sequence[SiteOutliers]) -> JointOutliers:
    """Of a joint site, from its parts."""
    widths = [len(one.rest.sum) for one in parts]
    starts = np.cumsum([0, *widths[:-1]])
    return JointOutliers(
        median_norm=float("nan"),
        rows=np.unique(np.concatenate([one.rows for one in parts])),
        ordinary=_moments([one.ordinary for one in parts]),
        massive=_moments([one.massive for one in parts]),
        dimensions=tuple(int(at) + d for at, one in zip(starts, parts, strict=True) for d in one.dimensions),
        rest=_moments([one.rest for one in parts]),
        parts=tuple(parts),
    )


def balance(parts: Sequence[SiteStats]) -> Vector:
    """[d] 1/s of each dimension of a joint site, s² the mean variance per dimension of its part outside position 0.

    Σ‖y − ŷ‖² of rows multiplied by it is the sum over the parts of the errors in units of the part's own variance.
    """
    variances = [one.rest.var for one in parts]
    return np.concatenate([np.full(len(v), v.mean() ** -0.5 if v.mean() > 0 else 1.0) for v in variances])


def _moments(parts: Sequence[Moments]) -> Moments:
    """Sums of the parts side by side. Means stay those of each part: sums are scaled to the first part's rows."""
    n = parts[0].n
    factors = [n / one.n if one.n else 1.0 for one in parts]
    return Moments(
        n,
        np.concatenate([one.sum * f if f != 1 else one.sum for one, f in zip(parts, factors, strict=True)]),
        np.concatenate([one.sum_sq * f if f != 1 else one.sum_sq for one, f in zip(parts, factors, strict=True)]),
        float("nan"),
        sum(one.sum_norm_sq * f for one, f in zip(parts, factors, strict=True)),
    )
