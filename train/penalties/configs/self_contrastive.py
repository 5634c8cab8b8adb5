"""Settings of the penalty `self_contrastive`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import PenaltyConfig


@dataclass(frozen=True, kw_only=True)
class SelfContrastiveConfig(PenaltyConfig):
    """Orthogonality of similar latents with an annealed threshold, and InfoNCE between two views of each row."""

    kind: Literal["self_contrastive"] = "self_contrastive"
    weight: float = 1.0
    projection: int | None = 128
    """Width of the random projection in which similar latents are searched; null: exact, without a projection."""
    rescore: bool = True
    """Compute the exact cosine of the nominated pairs (the projected one is off by about 1/√projection)."""
    slack: float = 0.0
    """How far below the threshold a projected cosine may lie for its pair to be nominated."""
    max_pairs: int = 65_536
    """Largest number of nominated pairs; the most similar ones are kept."""
    threshold_start: float = 0.3
    """θ at the beginning of training: a cosine up to it costs nothing."""
    threshold_end: float = 0.05
    """θ at the end, reached along half a cosine. Random rows in d dimensions have cosines of about 1/√d."""
    contrastive_weight: float = 0.3
    """Weight of the contrastive term beside the orthogonality term, after its warm-up."""
    contrastive_warmup: int = 1000
    """Steps over which that weight grows from 0."""
    temperature: float = 0.1
    """Temperature of InfoNCE."""
    dropout: float = 0.1
    """Share of a row's latents that each view drops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection is not None and self.projection < 1:
            raise ValueError(f"projection must be at least 1 or null, not {self.projection}")
        if self.max_pairs < 1 or self.contrastive_warmup < 1:
            raise ValueError("max_pairs and contrastive_warmup must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: a share in [0, 1), not {self.dropout}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
