"""Settings of JumpReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import ENCODER_NORM
from .sparsity import SparsityConfig

LINEAR_COEF, QUADRATIC_COEF = 1e-3, 0.2
"""Default l0_coef without and with l0_target."""

SMALLEST_THRESHOLD = 0.05


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(SparsityConfig):
    """JumpReLU with an L0 penalty."""

    architecture: Literal["jumprelu"] = "jumprelu"
    penalty: Literal["l0", "tanh_quadratic"] = "l0"
    """What makes codes sparse: their number (with `l0_target` the square of its distance from the target), or
    Σ_i p_i (1 + p_i/s), p_i = mean tanh(c·z_i‖w_i‖), which weighs on latents that are often active."""
    l0_coef: float | None = None
    """Weight of the penalty; the reconstruction loss is on the FVU scale. Null: 0.001, or 0.2 for the squared
    distance from `l0_target`."""
    threshold: float | None = None
    """Initial value of all thresholds. Null: 0.4, one standard deviation of the initial pre-activations of white input;
    with `l0_target`, the value that makes the initial L0 of white input the target."""
    bandwidth: float = 0.05
    """Width ε of the window around a threshold in which pre-activations move it. Inputs have E‖u‖² = d_in here; the
    0.001 of the paper, for E‖x‖² = 1, is 0.001·√d_in: 0.05 at a width of 2,304."""
    threshold_lr: float | None = None
    """Learning rate of the (logarithms of the) thresholds, as a multiple of the other parameters' rate; null: 1, or 20
    with `l0_target`, because at the common rate they lag behind the encoder by thousands of steps."""
    max_frequency: float | None = None
    """Share of rows above which a latent counts as dense and is penalised; null: no penalty on dense latents."""
    frequency_coef: float = 10.0
    """Weight of Σ_i ReLU(p_i − max_frequency)², p_i the share of rows on which latent i fires."""
    tanh_scale: float = 1.0
    """c of `tanh_quadratic`."""
    tanh_share: float = 0.1
    """s of `tanh_quadratic`: the frequency at which the quadratic part equals the linear one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l0_coef is not None:
            self.check_coefficient("l0_coef")
        for name in ("threshold", "bandwidth", "threshold_lr", "tanh_scale", "tanh_share"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.frequency_coef < 0:
            raise ValueError(f"frequency_coef must be 0 or more, not {self.frequency_coef}")
        if self.max_frequency is not None:
            if not 0 < self.max_frequency < 1:
                raise ValueError(f"max_frequency must be between 0 and 1, not {self.max_frequency}")
            most = self.max_frequency * self.latents
            if self.l0_target is not None and self.l0_target > most:
                raise ValueError(
                    f"{self.latents} latents that fire on at most {self.max_frequency:.0%} of rows give an L0 of at "
                    f"most {most:g}, below l0_target = {self.l0_target:g}: raise max_frequency or latents"
                )

    @property
    def quadratic(self) -> bool:
        """Whether the penalty is the squared distance of L0 from its target."""
        return self.penalty == "l0" and self.l0_target is not None

    @property
    def coefficient(self) -> float:
        """l0_coef in use."""
        if self.l0_coef is not None:
            return self.l0_coef
        return QUADRATIC_COEF if self.quadratic else LINEAR_COEF

    @property
    def threshold_rate(self) -> float:
        """threshold_lr in use."""
        if self.threshold_lr is not None:
            return self.threshold_lr
        return 1.0 if self.l0_target is None else 20.0

    @property
    def first_threshold(self) -> float:
        """`threshold` in use."""
        if self.threshold is not None:
            return self.threshold
        return ENCODER_NORM if self.first_level is None else max(SMALLEST_THRESHOLD, self.first_level)
