"""Settings that every architecture has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Normalise = Literal["scalar", "per_dimension", "whiten"]

ENCODER_NORM = 0.4
"""Initial length of encoder rows. With rows of length 1 the first codes are so large that the reconstruction starts
worse than the mean, and training spends its first epochs shrinking them (docs/training.md has the figures)."""


@dataclass(frozen=True, kw_only=True)
class CoderConfig:
    """Settings common to all architectures."""

    architecture: str
    """Which architecture: a key of ARCHITECTURES."""
    latents: int = 1024
    """Dictionary size F."""
    decoder_norm: Literal["unit", "free"] = "unit"
    """Decoder rows: kept at unit length, or free."""
    skip: bool = False
    """Add a linear path from input to output, W_skip [d_out, d_in], starting at zero (transcoders)."""
    input_transform: Literal["raw", "rms"] = "raw"
    """The input as cached, or divided by its root mean square (Gemma Scope's transcoders read resid_mid that way)."""
    normalise: Normalise = "per_dimension"
    """What training divides both sides by, after their mean is subtracted: one scalar, each dimension's own standard
    deviation, or the square root of the covariance (whiten). docs/architectures.md has the formulas."""
    whiten_shrinkage: float = 0.01
    """What whitening adds to every eigenvalue of the covariance, in mean eigenvalues."""
    subtract_decoder_bias: bool = False
    """Subtract the decoder's bias from the encoder's input (autoencoders); it starts at zero, as the mean is subtracted
    already. Folded into the encoder's bias on export."""
    aux_k: int | None = None
    """Dead latents per row that reconstruct the error (AuxK); null: half the output width. 0: off."""
    aux_coef: float = 1 / 32
    """Weight α of AuxK."""

    def __post_init__(self) -> None:
        if self.latents < 1:
            raise ValueError(f"latents must be at least 1, not {self.latents}")
        if self.aux_k is not None and self.aux_k < 0:
            raise ValueError(f"aux_k must be 0 or more, not {self.aux_k}")
        if self.subtract_decoder_bias and self.input_transform == "rms":
            raise ValueError("subtract_decoder_bias: with input_transform: rms, input and output are different spaces")
        if not self.whiten_shrinkage > 0:
            raise ValueError(f"whiten_shrinkage must be positive, not {self.whiten_shrinkage}")


@dataclass(frozen=True)
class StepContext:
    """What a coder may know of the step it is in; the defaults are those of a coder outside training.

    Attributes:
        seed: the run's.
        step: number of the update, from 1; total_steps: of the whole run.
        counted: [B] bool, the batch's rows outside position 0; None: all count.
    """

    seed: int = 0
    step: int = 0
    total_steps: int = 0
    counted: Tensor | None = None

    def along(self, start: float, end: float, steps: int | None) -> float:
        """From `start` to `end` along a line over `steps` updates (None: half of the run), then `end`."""
        length = max(1, self.total_steps // 2) if steps is None else steps
        return start + (end - start) * min(1.0, self.step / length) if self.total_steps else end
