"""Settings of coders that a penalty makes sparse."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from .base import ENCODER_NORM, CoderConfig


@dataclass(frozen=True, kw_only=True)
class SparsityConfig(CoderConfig):
    """Settings common to all coders with a sparsity penalty."""

    l0_target: float | None = None
    """The L0 to train to, excluding position 0: the penalty's weight follows the L0 of every step. Null: the penalty's
    coefficient decides, and L0 is what comes out."""
    l0_start: float | None = None
    """The target at the beginning, which moves along a line to `l0_target`; null: `l0_target` from the beginning."""
    l0_steps: int | None = None
    """Steps from `l0_start` to `l0_target`; null: half of the run."""
    sparsity_warmup: int = 0
    """Steps over which the penalty's weight grows linearly from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("l0_target", "l0_start"):
            value = getattr(self, name)
            if value is not None and not 0 < value < self.latents:
                raise ValueError(f"{name} must be between 0 and latents = {self.latents}, not {value}")
        if self.l0_start is not None and self.l0_target is None:
            raise ValueError("l0_start moves to l0_target, which is null")
        if self.l0_steps is not None and (self.l0_steps < 1 or self.l0_start is None):
            raise ValueError("l0_steps must be at least 1, and needs l0_start")
        if self.sparsity_warmup < 0:
            raise ValueError(f"sparsity_warmup must be 0 or more, not {self.sparsity_warmup}")

    @property
    def first_level(self) -> float | None:
        """The value that as many initial pre-activations of white input exceed as the target says; None without one.

        They are normal with deviation ENCODER_NORM.
        """
        target = self.l0_target if self.l0_start is None else self.l0_start
        return None if target is None else ENCODER_NORM * NormalDist().inv_cdf(1 - target / self.latents)

    def check_coefficient(self, name: str) -> None:
        """Refuse a coefficient below 0, and one of 0 where a controller multiplies it."""
        value = getattr(self, name)
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, not {value}")
        if value == 0 and self.l0_target is not None:
            raise ValueError(f"l0_target needs a penalty to move: {name} must be positive, not 0")
