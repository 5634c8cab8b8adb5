"""The architectures by name, and how a coder is built from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..config.registry import tagged
from .base import Coder, CoderConfig
from .batchtopk import BatchTopK
from .gated import Gated
from .jumprelu import JumpReLU
from .matryoshka import Matryoshka
from .relu import ReLU
from .topk import TopK

ARCHITECTURES: dict[str, type[Coder]] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "relu": ReLU,
    "jumprelu": JumpReLU,
    "gated": Gated,
}

if TYPE_CHECKING:
    AnyCoderConfig = CoderConfig
else:
    AnyCoderConfig = tagged({name: coder.config_class for name, coder in ARCHITECTURES.items()}, "architecture")


def build_coder(
    config: CoderConfig, d_in: int, d_out: int, *, tied: bool, generator: torch.Generator | None = None
) -> Coder:
    """A fresh coder on the CPU, in float32.

    Args:
        tied: True for an SAE (source = target), False for a transcoder.
        generator: CPU generator of the initial weights.
    """
    return ARCHITECTURES[config.architecture](config, d_in, d_out, tied=tied, generator=generator)
