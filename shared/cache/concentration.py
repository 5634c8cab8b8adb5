"""Whether an FVU is mostly about a few outlying dimensions, in words."""

from __future__ import annotations

from ..console import count
from .outliers import SiteOutliers

DISAGREE, OUTLYING = 2.0, 0.3
"""The note is due where the mean FVU per dimension is more than DISAGREE times the FVU, and outlying dimensions hold
more than the share OUTLYING of the variance."""


def concentration_note(fvu: float | None, fvu_dims: float | None, outliers: SiteOutliers) -> str | None:
    """What to read beside the FVU; None where it describes most dimensions.

    Args:
        fvu: over the rows excluding position 0.
        fvu_dims: mean over dimensions of the FVU of each, over the same rows.
        outliers: of the target site.
    """
    if fvu is None or fvu_dims is None or fvu_dims <= DISAGREE * fvu or outliers.dimensions_share <= OUTLYING:
        return None
    dimensions = f"{count(len(outliers.dimensions), 'dimension')} of {len(outliers.rest.sum):,}"
    return (
        f"FVU {fvu:.3f} mostly describes {dimensions}, with {outliers.dimensions_share:.0%} of the variance; "
        f"the mean FVU per dimension is {fvu_dims:.3f} (train.coder.normalise: per_dimension weighs dimensions alike)"
    )
