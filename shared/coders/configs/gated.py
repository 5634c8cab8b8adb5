"""Settings of Gated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .sparsity import SparsityConfig


@dataclass(frozen=True, kw_only=True)
class GatedConfig(SparsityConfig):
    """Gated, with L1 on the gate."""

    architecture: Literal["gated"] = "gated"
    l1_coef: float = 0.04
    """Weight of Σ ReLU(π_i)·‖w_i‖ for targets of mean squared norm 1, π the gate; the larger, the sparser. With
    `l0_target`, where the weight begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_coefficient("l1_coef")
