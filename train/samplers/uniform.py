"""Every row once per epoch, in random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .base import Sampler, SamplerConfig, Window


@dataclass(frozen=True, kw_only=True)
class UniformConfig(SamplerConfig):
    """Every row."""

    kind: Literal["uniform"] = "uniform"


class Uniform(Sampler):
    """Every row, in random order."""

    config_class: ClassVar[type[SamplerConfig]] = UniformConfig

    def order(self, window: Window) -> NDArray[np.int64]:
        return window.generator().permutation(len(window))

    def count(self, window: Window) -> int:
        return len(window)
