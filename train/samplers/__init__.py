"""Samplers choose which rows are trained on, and in which order: one per file, one line in SAMPLERS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...shared.config.registry import tagged
from .base import Sampler, SamplerConfig, Window
from .exclude_bos import ExcludeBos
from .position_stratified import PositionStratified
from .uniform import Uniform, UniformConfig

__all__ = ["SAMPLERS", "AnySamplerConfig", "Sampler", "SamplerConfig", "UniformConfig", "Window", "build_sampler"]

SAMPLERS: dict[str, type[Sampler]] = {
    "uniform": Uniform,
    "exclude_bos": ExcludeBos,
    "position_stratified": PositionStratified,
}

if TYPE_CHECKING:
    AnySamplerConfig = SamplerConfig
else:
    AnySamplerConfig = tagged({name: sampler.config_class for name, sampler in SAMPLERS.items()}, "kind")


def build_sampler(config: SamplerConfig) -> Sampler:
    """The sampler that the settings name."""
    return SAMPLERS[config.kind](config)
