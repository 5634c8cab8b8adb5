"""Massive activations: a few dimensions, and position 0, that are far larger than everything else.

Sun et al. 2024 (arXiv 2402.17762) call an activation massive when it is above 100 and about a thousand times the median
magnitude. A cache keeps sums, not single values, so the report is of root mean squares: a dimension stands out when its
RMS over rows is at least ten times the median dimension's. Position 0 and the other rows are reported separately, since
position 0 has its own outliers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .stats import Moments, SiteStats

TIMES_MEDIAN = 10.0
MOST_LISTED = 8


@dataclass(frozen=True)
class Outlier:
    """A dimension, its RMS over rows, and that as a multiple of the median dimension's (None if the median is 0)."""

    dimension: int
    rms: float
    times_median: float | None

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def outliers(moments: Moments, times: float = TIMES_MEDIAN) -> list[Outlier]:
    """Dimensions with an RMS of at least ``times`` the median dimension's, the largest first."""
    if not moments.n:
        return []
    rms = np.sqrt(moments.sum_sq / moments.n)
    median = float(np.median(rms))
    found = np.flatnonzero((rms > 0) & (rms >= times * median))
    order = found[np.argsort(-rms[found], kind="stable")]
    return [Outlier(int(d), float(rms[d]), float(rms[d] / median) if median else None) for d in order]


def massive_activations(stats: SiteStats) -> dict[str, Any]:
    """The report of one site, JSON-able; figures without rows are None.

    Returns:
        ``norm_first`` and ``norm_rest``: mean norm at position 0 and elsewhere. ``first_over_rest``: their ratio.
        ``dimensions_first``, ``dimensions_rest``: the largest outlying dimensions; ``n_first``, ``n_rest``: how many.
    """
    first = stats.first.mean_norm if stats.first.n else None
    rest = stats.rest.mean_norm if stats.rest.n else None
    at_first, elsewhere = outliers(stats.first), outliers(stats.rest)
    return {
        "norm_first": first,
        "norm_rest": rest,
        "first_over_rest": first / rest if first is not None and rest else None,
        "n_first": len(at_first),
        "n_rest": len(elsewhere),
        "dimensions_first": [one.to_dict() for one in at_first[:MOST_LISTED]],
        "dimensions_rest": [one.to_dict() for one in elsewhere[:MOST_LISTED]],
    }


def massive_text(report: dict[str, Any]) -> str:
    """The report in one line; "" without rows."""
    if report["norm_rest"] is None:
        return ""
    parts = []
    if report["first_over_rest"] is not None:
        parts.append(
            f"mean norm {report['norm_first']:.4g} at position 0, {report['norm_rest']:.4g} elsewhere "
            f"({report['first_over_rest']:.3g}×)"
        )
    else:
        parts.append(f"mean norm {report['norm_rest']:.4g}")
    for where, rows in (("first", "at position 0"), ("rest", "elsewhere")):
        listed = report[f"dimensions_{where}"]
        if listed:
            named = ", ".join(
                str(one["dimension"]) + ("" if one["times_median"] is None else f" ({one['times_median']:.3g}×)")
                for one in listed[:3]
            )
            parts.append(f"{report[f'n_{where}']} outlying dimensions {rows}: {named}")
    return "; ".join(parts)
