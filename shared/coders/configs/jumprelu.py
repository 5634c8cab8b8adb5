"""Settings of JumpReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import CoderConfig


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(CoderConfig):
    """JumpReLU with an L0 penalty."""

    architecture: Literal["jumprelu"] = "jumprelu"
    l0_coef: float = 1e-3
    """Weight of the mean number of active latents; the reconstruction loss is on the FVU scale."""
    threshold: float = 0.4
    """Initial value of all thresholds. 0.4 is one standard deviation of the initial pre-activations of white input."""
    bandwidth: float = 0.05
    """Width ε of the window around a threshold in which pre-activations move it. Inputs have E‖u‖² = d_in here; the
    0.001 of the paper, for E‖x‖² = 1, is 0.001·√d_in: 0.05 at a width of 2,304."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l0_coef < 0:
            raise ValueError(f"l0_coef must be 0 or more, not {self.l0_coef}")
        for name in ("threshold", "bandwidth"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
