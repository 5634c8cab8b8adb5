"""Settings of ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import CoderConfig


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(CoderConfig):
    """ReLU with L1."""

    architecture: Literal["relu"] = "relu"
    l1_coef: float = 0.04
    """Weight of Σ z_i·‖w_i‖ for targets of mean squared norm 1; larger values give sparser codes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1_coef < 0:
            raise ValueError(f"l1_coef must be 0 or more, not {self.l1_coef}")
