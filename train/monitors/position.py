"""Where in the sequence the rows lie that were trained on, and where latents fire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ...shared.codes.positions import bin_edges, position_bins
from .base import Finding, Histogram, Monitor, MonitorConfig, Seen


@dataclass(frozen=True, kw_only=True)
class PositionConfig(MonitorConfig):
    """Distribution over position bins."""

    kind: Literal["position"] = "position"
    bins: int = 10
    """Equal bins of the positions after 0, which is a bin of its own."""
    bos_share: float = 0.2
    """A latent with a larger share of its firings at position 0 is counted as locked to it."""
    min_fired: int = 20
    """Rows of the window that a latent must fire on to count as locked."""

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins must be at least 1, not {self.bins}")
        if not 0 <= self.bos_share <= 1:
            raise ValueError(f"bos_share: a share in [0, 1], not {self.bos_share}")


class PositionMonitor(Monitor):
    """Rows drawn, and activation Σ z, by position bin: the sampler's result and the coder's.

    `bos_activation` is the share of Σ z at position 0. `bos_enrichment` is the mean Σ z of such a row ÷ that of another
    row: 1 where position 0 has the share of the activation that it has of the rows, however many of them are drawn.
    """

    config_class: ClassVar[type[MonitorConfig]] = PositionConfig
    config: PositionConfig

    def look(self, seen: Seen) -> Finding:
        c, codes = self.config, seen.codes
        row_bin = position_bins(seen.position.astype(np.int64), seen.ctx, c.bins)
        drawn = np.bincount(row_bin, minlength=c.bins + 1)
        bins = np.repeat(row_bin, codes.l0)
        activation = np.bincount(bins, codes.values, c.bins + 1)
        fired = codes.fired
        at_bos = np.bincount(codes.latents[bins == 0], minlength=codes.n_latents)
        often = fired >= c.min_fired
        total, bos = float(activation.sum()), float(activation[0])
        others = codes.n_rows - int(drawn[0])
        edges = bin_edges(seen.ctx, c.bins)
        shares = drawn[1:] / drawn[1:].sum() if drawn[1:].sum() else np.zeros(0)
        return Finding(
            {
                "bos_rows": float(drawn[0] / codes.n_rows) if codes.n_rows else None,
                "bos_activation": bos / total if total > 0 else None,
                "bos_enrichment": bos / int(drawn[0]) * others / (total - bos) if drawn[0] and total > bos else None,
                "bos_locked": int((at_bos[often] > c.bos_share * fired[often]).sum()),
                "evenness": float(_entropy(shares) / np.log(c.bins)) if c.bins > 1 and len(shares) else None,
            },
            {"bins": c.bins, "rows": drawn.tolist(), "activation": [round(float(a), 3) for a in activation]},
            {"rows": Histogram(drawn.tolist(), edges), "activation": Histogram(activation.tolist(), edges)},
        )


def _entropy(p: np.ndarray) -> float:
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())
