"""Settings of the absorption report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..base import ReportConfig

MAX_K = 10
"""Largest number of main latents."""

F1_JUMP = 0.03
"""One more main latent must raise F1 by more than this."""


@dataclass(frozen=True, kw_only=True)
class AbsorptionConfig(ReportConfig):
    """How much of a label's direction other latents have taken over, for families of labels."""

    kind: Literal["absorption"] = "absorption"
    needs_tokens: ClassVar[bool] = True
    by_default: ClassVar[bool] = False
    families: tuple[str, ...] | None = None
    """Families of labels; null: all that the cache has (of a cache of prompts: the prompts' own)."""
    rows: int = 20_000
    """Number of rows to sample."""
    splits: int = 3
    """Number of splits into rows to learn from and rows to score; true positives are pooled."""
    min_positives: int = 50
    """Least number of positive and of negative rows of a label in the sample."""
    min_probe_f1: float = 0.6
    """A label is evaluable if its dense probe exceeds this F1 on held-out rows …"""
    min_true_positives: int = 10
    """… and has at least this number of true positives on them."""
    min_letters: int = 20
    """Letters that the first-letter family needs to be evaluable; other families need one label."""
    min_main_mcc: float = 0.3
    """Least Matthews correlation of the probe of a label's main latents. Below it the coder has no latents for the
    label, and the label is not evaluable. −1: no such gate, as published."""
    min_main_share: float = 0.05
    """Least share of the projection on the label's direction that its main latents carry where they fire, and at least
    4 ln F/d, twice what random latents carry. Below it the label is not evaluable. 0: no such gate, as published."""
    origin: Literal["zero", "mean"] = "zero"
    """Origin of a row's projection on the probe: the zero vector (as published), or the site's mean."""
    l1: float = 0.01
    """L1 penalty of the probe that ranks the latents, on codes scaled to a mean active value of 1."""
    max_k: int = MAX_K
    """Largest number of main latents of a label."""
    f1_jump: float = F1_JUMP
    """A label gets one more main latent while that raises F1 by more than this."""

    def __post_init__(self) -> None:
        if self.rows < 100 or self.splits < 1 or self.min_positives < 2 or self.max_k < 1:
            raise ValueError("rows is at least 100, splits and max_k at least 1, min_positives at least 2")
        if not 0 <= self.min_main_share < 1:
            raise ValueError(f"min_main_share is at least 0 and below 1, not {self.min_main_share}")
