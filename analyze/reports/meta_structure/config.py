"""Settings of the meta-structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..base import ReportConfig


@dataclass(frozen=True, kw_only=True)
class MetaStructureConfig(ReportConfig):
    """How far latents are made of fewer, more general ones: a coder of the decoder's rows (Bussmann et al. 2025)."""

    kind: Literal["meta_structure"] = "meta_structure"
    by_default: ClassVar[bool] = False
    width_ratio: float = 0.25
    """Meta-latents, as a share of the latents."""
    k: int = 4
    """Meta-latents of a decoder row, on average (BatchTopK)."""
    steps: int = 1500
    """Training steps of the meta-coder."""
    batch: int = 1024
    """Decoder rows of a step, drawn with replacement."""
    learning_rate: float = 5e-4
    """Learning rate of Adam."""

    def __post_init__(self) -> None:
        if not 0 < self.width_ratio <= 1 or self.k < 1 or self.steps < 1 or self.batch < 1:
            raise ValueError("width_ratio is above 0 and at most 1; k, steps and batch are at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
