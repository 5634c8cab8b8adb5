"""Settings of Gated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import CoderConfig


@dataclass(frozen=True, kw_only=True)
class GatedConfig(CoderConfig):
    """Gated, with L1 on the gate."""

    architecture: Literal["gated"] = "gated"
    l1_coef: float = 0.04
    """Weight of Σ ReLU(π_i)·‖w_i‖ for targets of mean squared norm 1, π the gate; the larger, the sparser."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1_coef < 0:
            raise ValueError(f"l1_coef must be 0 or more, not {self.l1_coef}")
