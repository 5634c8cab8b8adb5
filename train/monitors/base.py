"""What a monitor sees, what it returns, and the settings common to all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ...shared.coders import Coder
    from ...shared.codes.sparse import SparseCodes


@dataclass(frozen=True)
class Seen:
    """The codes of the last steps, as a monitor sees them.

    Attributes:
        codes: the active codes of all rows of the window, on the host.
        position: [R] of these rows in their sequence, 0 at every BOS.
        coder: as it is now. Monitors do not change it.
        ctx: tokens in a sequence.
    """

    codes: SparseCodes
    position: NDArray[np.int32]
    coder: Coder = field(repr=False)
    ctx: int

    @cached_property
    def rest(self) -> NDArray[np.bool_]:
        """[R] the rows excluding position 0."""
        return self.position > 0


class Histogram(NamedTuple):
    """counts [n] over bins with edges [n + 1]."""

    counts: list[float]
    edges: list[float]


@dataclass(frozen=True)
class Finding:
    """The result of a monitor.

    Attributes:
        figures: numbers for metrics.jsonl, logged as <monitor>/<name>; None where there is nothing to measure.
        details: everything else, JSON-able, for the report of the step.
        histograms: those a tracker draws, by name.
    """

    figures: dict[str, float | int | None]
    details: dict[str, Any]
    histograms: dict[str, Histogram] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Settings common to all monitors."""

    kind: str
    """Which monitor: a key of MONITORS."""


class Monitor(ABC):
    """Measures the codes of the last steps. Stateless: the result depends on what it is given alone."""

    config_class: ClassVar[type[MonitorConfig]]

    def __init__(self, config: MonitorConfig) -> None:
        self.config = config

    @abstractmethod
    def look(self, seen: Seen) -> Finding:
        """The figures of a window."""
