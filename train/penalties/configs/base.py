"""Settings that every penalty has."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..weights import AnyWeightScheduleConfig, ConstantConfig


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    """Settings common to all penalties."""

    kind: str
    """Which penalty: a key of PENALTIES."""
    weight: float
    """Weight relative to a reconstruction loss on the FVU scale."""
    schedule: AnyWeightScheduleConfig = field(default_factory=ConstantConfig)
    """How the weight changes over training."""
    every: int = 1
    """Compute the penalty at every n-th step only (n, 2n, …), with n times the weight."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1, not {self.every}")
        if self.weight < 0:
            raise ValueError(f"weight must be 0 or more, not {self.weight}")
