"""The architectures by name, and how a coder is built from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.registry import Registry, tagged
from .configs.base import CoderConfig
from .configs.batchtopk import BatchTopKConfig
from .configs.cross_layer import CrossLayerConfig
from .configs.gated import GatedConfig
from .configs.jumprelu import JumpReLUConfig
from .configs.matryoshka import MatryoshkaConfig
from .configs.matryoshka_jumprelu import MatryoshkaJumpReLUConfig
from .configs.relu import ReLUConfig
from .configs.topk import TopKConfig

if TYPE_CHECKING:
    import torch

    from .base import Coder, Widths

ARCHITECTURES: Registry[type[Coder]] = Registry(
    __package__,
    {
        "topk": (TopKConfig, "topk.TopK"),
        "batchtopk": (BatchTopKConfig, "batchtopk.BatchTopK"),
        "matryoshka": (MatryoshkaConfig, "matryoshka.Matryoshka"),
        "relu": (ReLUConfig, "relu.ReLU"),
        "jumprelu": (JumpReLUConfig, "jumprelu.JumpReLU"),
        "matryoshka-jumprelu": (MatryoshkaJumpReLUConfig, "matryoshka_jumprelu.MatryoshkaJumpReLU"),
        "cross-layer": (CrossLayerConfig, "cross_layer.CrossLayer"),
        "gated": (GatedConfig, "gated.Gated"),
    },
)

if TYPE_CHECKING:
    AnyCoderConfig = CoderConfig
else:
    AnyCoderConfig = tagged(ARCHITECTURES.configs(), "architecture")


def build_coder(
    config: CoderConfig,
    d_in: Widths,
    d_out: Widths,
    *,
    tied: bool,
    generator: torch.Generator | None = None,
    kind: type[Coder] | None = None,
) -> Coder:
    """A fresh coder on the CPU, in float32.

    Args:
        tied: True for an SAE (source = target), False for a transcoder.
        generator: CPU generator of the initial weights.
        kind: the class, where it is not the architecture's own.
    """
    return (kind or ARCHITECTURES[config.architecture])(config, d_in, d_out, tied=tied, generator=generator)
