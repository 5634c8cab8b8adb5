"""How a penalty's weight changes over training: one class per schedule, one line in WEIGHT_SCHEDULES."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ...shared.config.registry import tagged
from ..schedules import cosine, linear


@dataclass(frozen=True, kw_only=True)
class WeightScheduleConfig:
    """Settings common to all weight schedules."""

    kind: str
    """Which schedule: a key of WEIGHT_SCHEDULES."""


class WeightSchedule(ABC):
    """A factor that multiplies a penalty's weight."""

    config_class: ClassVar[type[WeightScheduleConfig]]

    def __init__(self, config: WeightScheduleConfig) -> None:
        self.config = config

    @abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """The factor at update number `step` (1 … total_steps)."""

    def observe(self, value: float) -> None:  # noqa: B027 (only the adaptive schedule listens)
        """Receive the penalty's unweighted value after a step that computed it, or the figure that `metric` names."""

    @property
    def listens(self) -> bool:
        """Whether `observe` needs the penalty's value: reading it from a device makes the host wait."""
        return False

    @property
    def metric(self) -> str | None:
        """The figure of a monitor that `observe` receives instead."""
        return None

    def state(self) -> dict[str, float]:
        """What a resumed run needs to be bit-identical."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:  # noqa: B027 (most schedules have none)
        """Restore what `state` returned."""


@dataclass(frozen=True, kw_only=True)
class ConstantConfig(WeightScheduleConfig):
    """A constant weight."""

    kind: Literal["constant"] = "constant"


class Constant(WeightSchedule):
    """A factor of 1."""

    config_class: ClassVar[type[WeightScheduleConfig]] = ConstantConfig

    def factor(self, step: int, total_steps: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class LinearConfig(WeightScheduleConfig):
    """Linear warm-up."""

    kind: Literal["linear"] = "linear"
    start: float = 0.0
    """Factor at the beginning; it ends at 1."""
    steps: int | None = None
    """Length of the warm-up; null: a tenth of training."""


class Linear(WeightSchedule):
    """start → 1 over `steps`, then 1."""

    config_class: ClassVar[type[WeightScheduleConfig]] = LinearConfig
    config: LinearConfig

    def factor(self, step: int, total_steps: int) -> float:
        steps = self.config.steps or max(total_steps // 10, 1)
        return linear(self.config.start, 1.0, step / steps)


@dataclass(frozen=True, kw_only=True)
class CosineConfig(WeightScheduleConfig):
    """Cosine anneal."""

    kind: Literal["cosine"] = "cosine"
    start: float = 1.0
    """Factor at the beginning."""
    end: float = 0.0
    """Factor at the end."""
    steps: int | None = None
    """Length of the anneal; null: all of training."""


class Cosine(WeightSchedule):
    """start → end over `steps` along half a cosine, then end."""

    config_class: ClassVar[type[WeightScheduleConfig]] = CosineConfig
    config: CosineConfig

    def factor(self, step: int, total_steps: int) -> float:
        return cosine(self.config.start, self.config.end, step / (self.config.steps or total_steps))


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig(WeightScheduleConfig):
    """A weight that follows the figure it is meant to reduce."""

    kind: Literal["adaptive"] = "adaptive"
    metric: str | None = None
    """The figure of a monitor to follow, such as correlation/mean_max_r, read at each report; null: the penalty's own
    value, at each step."""
    target: float
    """Value of the moving average at which the weight stays as it is; above it the weight grows, below it falls."""
    rate: float = 1.0
    """Speed η."""
    ema: float = 0.99
    """Decay of the moving average at each value."""
    min: float = 0.1
    """Smallest factor."""
    max: float = 10.0
    """Largest factor."""


class Adaptive(WeightSchedule):
    """λ ← clip(λ·exp(η·(m − target)), min, max), with m the moving average of the values; λ starts at 1."""

    config_class: ClassVar[type[WeightScheduleConfig]] = AdaptiveConfig
    config: AdaptiveConfig

    def __init__(self, config: AdaptiveConfig) -> None:
        super().__init__(config)
        self.current = min(max(1.0, config.min), config.max)
        self.average: float | None = None

    def factor(self, step: int, total_steps: int) -> float:
        return self.current

    @property
    def listens(self) -> bool:
        return self.config.metric is None

    @property
    def metric(self) -> str | None:
        return self.config.metric

    def observe(self, value: float) -> None:
        c = self.config
        self.average = value if self.average is None else c.ema * self.average + (1 - c.ema) * value
        exponent = min(max(c.rate * (self.average - c.target), -50.0), 50.0)
        self.current = min(max(self.current * math.exp(exponent), c.min), c.max)

    def state(self) -> dict[str, float]:
        return {"current": self.current} | ({} if self.average is None else {"average": self.average})

    def load_state(self, state: dict[str, float]) -> None:
        self.current, self.average = state["current"], state.get("average")


WEIGHT_SCHEDULES: dict[str, type[WeightSchedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "adaptive": Adaptive,
}

if TYPE_CHECKING:
    AnyWeightScheduleConfig = WeightScheduleConfig
else:
    AnyWeightScheduleConfig = tagged({name: cls.config_class for name, cls in WEIGHT_SCHEDULES.items()}, "kind")


def build_schedule(config: WeightScheduleConfig) -> WeightSchedule:
    """The schedule that the settings name."""
    return WEIGHT_SCHEDULES[config.kind](config)
