"""Exclude position 0: its activation is the same vector in every sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ...shared.cache import Flag
from .base import Sampler, SamplerConfig, Window


@dataclass(frozen=True, kw_only=True)
class ExcludeBosConfig(SamplerConfig):
    """Every row but BOS."""

    kind: Literal["exclude_bos"] = "exclude_bos"
    position_zero: bool = True
    """Exclude position 0 whatever token it holds, not only BOS tokens: it is the attention sink either way."""

    @property
    def needs_bos(self) -> bool:
        return not self.position_zero


class ExcludeBos(Sampler):
    """Every row but BOS, in random order."""

    config_class: ClassVar[type[SamplerConfig]] = ExcludeBosConfig
    config: ExcludeBosConfig

    def order(self, window: Window) -> NDArray[np.int64]:
        return window.generator().permutation(np.flatnonzero(self._kept(window)))

    def count(self, window: Window) -> int:
        return int(self._kept(window).sum())

    def _kept(self, window: Window) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = (window.flags & int(Flag.BOS)) == 0
        return kept & (window.position > 0) if self.config.position_zero else kept
