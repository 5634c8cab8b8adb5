"""Settings of Matryoshka."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .batchtopk import BatchTopKConfig
from .nested import NestedConfig


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(NestedConfig, BatchTopKConfig):
    """Matryoshka over TopK or BatchTopK."""

    architecture: Literal["matryoshka"] = "matryoshka"  # type: ignore[assignment]
    k: int = 16
    """Latents kept per row; with `selection: batchtopk`, on average over a batch."""
    selection: Literal["topk", "batchtopk"] = "topk"
    """How latents are selected. threshold_ema and threshold_warmup apply to batchtopk."""

    @property
    def selects_over(self) -> Literal["row", "batch"]:
        return "batch" if self.selection == "batchtopk" else "row"
