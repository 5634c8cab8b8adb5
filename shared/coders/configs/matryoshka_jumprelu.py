"""Settings of Matryoshka over JumpReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .jumprelu import JumpReLUConfig
from .nested import NestedConfig


@dataclass(frozen=True, kw_only=True)
class MatryoshkaJumpReLUConfig(NestedConfig, JumpReLUConfig):
    """Matryoshka over JumpReLU."""

    architecture: Literal["matryoshka-jumprelu"] = "matryoshka-jumprelu"  # type: ignore[assignment]
