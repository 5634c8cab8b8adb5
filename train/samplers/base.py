"""What a sampler sees, what it answers, and how its settings begin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """The rows of one pool of the block shuffle, before they are drawn. Padding rows are gone already.

    Attributes:
        row: [n] int64 row in the cache.
        position: [n] position in the sequence.
        flags: [n] uint8 shared.cache.Flag bits.
        seed: the data seed.
        epoch: counted from 0.
        index: which window of the epoch, counted from 0.
    """

    row: NDArray[np.int64]
    position: NDArray[np.int32]
    flags: NDArray[np.uint8]
    seed: int
    epoch: int
    index: int

    def __len__(self) -> int:
        return len(self.row)

    def generator(self) -> np.random.Generator:
        """Random numbers that depend on (seed, epoch, window) alone, so that a resumed run draws the same."""
        return np.random.default_rng((self.seed, self.epoch, self.index))


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Settings common to all samplers."""

    kind: str
    """Which sampler: a key of SAMPLERS."""


class Sampler(ABC):
    """Decides which rows of a window are trained on, and in which order. A pure function of the window."""

    config_class: ClassVar[type[SamplerConfig]]

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config

    @abstractmethod
    def order(self, window: Window) -> NDArray[np.int64]:
        """Indices into the window [m ≤ n], each at most once, in training order."""

    def count(self, window: Window) -> int:
        """How many rows `order` keeps; overridden where that is known without drawing."""
        return len(self.order(window))
