"""Settings of ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .sparsity import SparsityConfig


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(SparsityConfig):
    """ReLU with L1."""

    architecture: Literal["relu"] = "relu"
    l1_coef: float = 0.04
    """Weight of Σ z_i·‖w_i‖ for targets of mean squared norm 1; larger values give sparser codes. With
    `l0_target`, where the weight begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_coefficient("l1_coef")
