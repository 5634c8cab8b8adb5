"""Which latents fire together: correlated pairs and duplicates over the last batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .base import Finding, Histogram, Monitor, MonitorConfig, Seen

if TYPE_CHECKING:
    from ..window.pairs import PairScan


@dataclass(frozen=True, kw_only=True)
class CorrelationConfig(MonitorConfig):
    """Pearson's r of all pairs of latents that fire together."""

    kind: Literal["correlation"] = "correlation"
    threshold: float = 0.8
    """|r| above which a pair counts."""
    min_fired: int = 20
    """Rows of the window (excluding position 0) that a latent must fire on."""
    min_both: int = 10
    """Rows that a pair must fire on together."""
    cos_duplicate: float = 0.8
    """Decoder cosine from which a pair is a duplicate if its Jaccard index is high too."""
    jaccard_duplicate: float = 0.5
    """Jaccard index that a pair of nearly parallel latents needs to count as a duplicate."""
    pairs: int = 100
    """Pairs listed in the report of a step, the most correlated ones."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold: a correlation between 0 and 1, not {self.threshold}")
        if self.min_fired < 2 or self.min_both < 1 or self.pairs < 0:
            raise ValueError("min_fired must be at least 2, min_both at least 1, pairs at least 0")


class CorrelationMonitor(Monitor):
    """Correlated pairs (|r| > threshold) including and excluding position 0, and duplicates.

    A duplicate pair has r > threshold, or parallel decoder rows and a large Jaccard index. Clusters of duplicates are
    connected components; `redundant` counts the latents that one per cluster would make superfluous.
    """

    config_class: ClassVar[type[MonitorConfig]] = CorrelationConfig
    config: CorrelationConfig

    def look(self, seen: Seen) -> Finding:
        from ...shared.codes.clusters import components
        from ..window.pairs import scan_pairs

        c = self.config
        scan = scan_pairs(
            seen.codes,
            seen.rest,
            threshold=c.threshold,
            min_fired=c.min_fired,
            min_both=c.min_both,
            jaccard=c.jaccard_duplicate,
        )
        cosine = _cosines(seen, scan)
        correlated = np.abs(scan.r) > c.threshold
        duplicate = (scan.r > c.threshold) | (cosine >= c.cos_duplicate)
        largest = scan.largest[~np.isnan(scan.largest)]
        sizes = np.bincount(components(scan.i[duplicate], scan.j[duplicate])[1])
        order = np.argsort(-np.abs(scan.r) * (correlated | duplicate), kind="stable")
        order = order[(correlated | duplicate)[order]]
        return Finding(
            {
                "pairs": int(correlated.sum()),
                "pairs_with_bos": scan.with_bos,
                "duplicates": int(duplicate.sum()),
                "redundant": int((sizes - 1).sum()),
                "max_r": float(largest.max()) if len(largest) else None,
                "mean_max_r": float(largest.mean()) if len(largest) else None,
            },
            {
                "threshold": c.threshold,
                "compared": len(largest),
                "clusters": sorted(sizes.tolist(), reverse=True),
                "listed": [_pair(scan, cosine, p) for p in order[: c.pairs].tolist()],
                "histogram": {"from": -1.0, "to": 1.0, "counts": scan.histogram.tolist()},
            },
            {"r": Histogram(scan.histogram.tolist(), np.linspace(-1, 1, len(scan.histogram) + 1).tolist())},
        )


def _cosines(seen: Seen, scan: PairScan) -> NDArray[np.float64]:
    """Cosine of the decoder rows of each listed pair."""
    import torch

    w_dec = seen.coder.w_dec.detach()
    ids = torch.from_numpy(np.stack([scan.i, scan.j])).to(w_dec.device)
    rows = torch.nn.functional.normalize(w_dec[ids], dim=2)
    cosines: NDArray[np.float64] = torch.linalg.vecdot(rows[0], rows[1]).double().cpu().numpy()
    return cosines


def _pair(scan: PairScan, cosine: NDArray[np.float64], p: int) -> dict[str, Any]:
    i, j = int(scan.i[p]), int(scan.j[p])
    return {
        "i": i,
        "j": j,
        "r": round(float(scan.r[p]), 4),
        "cosine": round(float(cosine[p]), 4),
        "fired_i": int(scan.moments.n[i]),
        "fired_j": int(scan.moments.n[j]),
        "both": int(scan.both[p]),
    }
