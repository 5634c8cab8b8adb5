"""Settings of the reconstruction report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base import ReportConfig


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(ReportConfig):
    """Reconstruction, sparsity, dead latents, geometry."""

    kind: Literal["global"] = "global"
    dense_above: float = 0.1
    """Firing rate (excluding position 0) above which a latent counts as ultra-dense."""

    def __post_init__(self) -> None:
        if not 0 < self.dense_above <= 1:
            raise ValueError(f"dense_above is a firing rate between 0 and 1, not {self.dense_above}")
