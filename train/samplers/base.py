"""The base of samplers: the window they see, the order they return, the settings they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """The rows of one pool of the block shuffle, before they are drawn, without padding.

    Attributes:
        row: [n] int64 row in the cache.
        position: [n] position in the sequence, 0 for every BOS row: shared.cache.positions.
        flags: [n] uint8 shared.cache.Flag bits.
        seed: the data seed.
        epoch: counted from 0.
        index: which window of the epoch, counted from 0.
        ctx: tokens in a sequence: positions run from 0 to ctx − 1.
        batch_size: rows of a batch; batches may begin anywhere in the window.
        control: what the sampler's `control` returned when training reached this window.
    """

    row: NDArray[np.int64]
    position: NDArray[np.int32]
    flags: NDArray[np.uint8]
    seed: int
    epoch: int
    index: int
    ctx: int
    batch_size: int
    control: float | None = None

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
    massive: Literal["keep", "exclude", "clip"] = "keep"
    """Massive rows of the run's sites (shared/cache/outliers.py): train on them as they are, not at all, or scaled down
    to the norm beyond which a row is massive. Evaluation always reads them as they are."""
    template: Literal["keep", "exclude"] = "keep"
    """Rows of a chat template's own tokens (flag TEMPLATE): train on them or not."""

    @property
    def needs_bos(self) -> bool:
        """Whether it would do nothing on a cache without BOS."""
        return False

    @property
    def follows_training(self) -> bool:
        """Whether the rows depend on the training so far: such a run needs a stream of its own."""
        return False


class Sampler(ABC):
    """Chooses which rows of a window are trained on, and in which order. A pure function of the window."""

    config_class: ClassVar[type[SamplerConfig]]

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config

    @abstractmethod
    def order(self, window: Window) -> NDArray[np.int64]:
        """Indices into the window [m ≤ n], each at most once, in training order."""

    def count(self, window: Window) -> int:
        """How many rows `order` keeps; overridden where that is known without drawing."""
        return len(self.order(window))

    # A sampler that follows training. `order` depends on `window.control` alone, which is saved in checkpoints.

    def control(self) -> float | None:
        """The number that decides the next window; read when training reaches it."""
        return None

    def observe(self, enrichment: float | None) -> None:  # noqa: B027 (most samplers do not listen)
        """Receive how many times as strong the rows at position 0 of a step activate as the others (Σ z of a row, on
        average); None if the step has no such rows. Called after each step, where `follows_training`."""

    def metrics(self) -> dict[str, float]:
        """Numbers for a line of metrics.jsonl."""
        return {}

    def state(self) -> dict[str, Any]:
        """Plain data that a resumed run needs to be bit-identical."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most samplers have none)
        """Restore what `state` returned."""
