"""Settings of sparse probing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..base import ReportConfig

KS = (1, 2, 5)
"""Numbers of latents."""


@dataclass(frozen=True, kw_only=True)
class ProbingConfig(ReportConfig):
    """How well a few latents predict a label."""

    kind: Literal["probing"] = "probing"
    needs_tokens: ClassVar[bool] = True
    by_default: ClassVar[bool] = False
    families: tuple[str, ...] | None = None
    """Families of labels; null: all that the cache has (of a cache of prompts: the prompts' own)."""
    rows: int = 20_000
    """Number of rows to sample."""
    min_positives: int = 50
    """Least number of positive and of negative rows of a label in the sample."""
    ks: tuple[int, ...] = KS
    """Numbers of latents."""

    def __post_init__(self) -> None:
        if self.rows < 100 or self.min_positives < 2 or not self.ks or min(self.ks) < 1:
            raise ValueError("rows is at least 100, min_positives at least 2, every k at least 1")
