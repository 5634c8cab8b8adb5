"""Settings of the penalty `decoder_orthogonality`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import PenaltyConfig


@dataclass(frozen=True, kw_only=True)
class DecoderOrthogonalityConfig(PenaltyConfig):
    """Mean squared cosine between decoder rows."""

    kind: Literal["decoder_orthogonality"] = "decoder_orthogonality"
    weight: float = 0.01
