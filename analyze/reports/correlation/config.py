"""Settings of the correlation report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base import ReportConfig


@dataclass(frozen=True, kw_only=True)
class CorrelationConfig(ReportConfig):
    """Which latents fire together."""

    kind: Literal["correlation"] = "correlation"
    threshold: float = 0.8
    """|r| above which a pair is reported; also the r of a duplicate."""
    min_fired: int = 50
    """Latents that fire on fewer rows are not scored."""
    min_both: int = 10
    """Pairs that fire together on fewer rows are not reported."""
    neighbours: int = 20
    """Most correlated latents kept per latent."""
    cos_structural: float = 0.5
    """Decoder cosine from which a correlated pair counts as structural (the same direction), below it as functional."""
    cos_duplicate: float = 0.8
    """Decoder cosine from which a pair is a duplicate if its Jaccard index is high too, and a split if r is near 0."""
    jaccard_duplicate: float = 0.5
    """Jaccard index that a pair of nearly parallel latents needs to count as a duplicate."""
    split_r: float = 0.2
    """|r| below which two nearly parallel latents count as a split feature."""
    null_latents: int = 2048
    """Latents in the shuffled null; more than that are sampled."""
    sorted_top: int = 3
    """Length of the sorted lists in the mistaken "correlation" that is shown once, beside its own null."""
    max_pairs: int = 1_000_000
    """Pairs kept in the Parquet table; all are counted."""
    triangle_gb: float = 4.0
    """Largest table of all pairs (12 bytes each) that each coder's pass holds in memory, in GB. Dictionaries beyond it
    (26,000 latents) keep their active codes in a file beside the report, and pairs are counted afterwards; the figures
    are the same."""

    latents: tuple[int, ...] = ()
    """Latents whose correlations with one another are shown as a matrix; `--latents 19,830` sets them."""

    def __post_init__(self) -> None:
        if any(latent < 0 for latent in self.latents) or len(set(self.latents)) < len(self.latents):
            raise ValueError(f"latents: expected different numbers from 0 on, found {list(self.latents)}")
        if self.triangle_gb < 0:
            raise ValueError(f"triangle_gb must be at least 0, not {self.triangle_gb}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is an |r| between 0 and 1, not {self.threshold}")
        if min(self.min_fired, self.min_both, self.neighbours, self.max_pairs) < 1 or self.sorted_top < 2:
            raise ValueError("min_fired, min_both, neighbours and max_pairs are at least 1, sorted_top at least 2")
