"""Settings of the loss with a coder spliced in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..base import ReportConfig


@dataclass(frozen=True, kw_only=True)
class CrossEntropyConfig(ReportConfig):
    """The model's loss with the coder spliced in. It runs the model, so this report is made only when requested."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    needs_tokens: ClassVar[bool] = True
    by_default: ClassVar[bool] = False
    sequences: int = 64
    """Number of sequences of the cache to run, spread evenly."""
    batch: int = 8
    """Sequences in one forward pass."""

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.batch < 1:
            raise ValueError("sequences and batch are at least 1")
