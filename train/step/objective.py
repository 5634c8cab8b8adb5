"""The loss of a step: the coder's own terms and the penalties, each under its own name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...shared.coders import Coder, Codes
from ..penalties import Penalty, PenaltyConfig, StepBatch, build_penalty
from ..penalties.weights import WeightSchedule, build_schedule


@dataclass(frozen=True)
class Terms:
    """What a step minimises.

    Attributes:
        total: the sum that is differentiated.
        values: every term by name, detached; a penalty's is unweighted, a coder's own carries its weight already.
        weights: the weight each penalty had in `total`.
    """

    total: Tensor
    values: dict[str, Tensor]
    weights: dict[str, float]


class Objective:
    """Coder terms + Σ weight·penalty, with the state that adaptive weights and penalties carry."""

    def __init__(self, penalties: Mapping[str, PenaltyConfig]) -> None:
        self.penalties: dict[str, Penalty] = {name: build_penalty(config) for name, config in penalties.items()}
        self.schedules: dict[str, WeightSchedule] = {
            name: build_schedule(config.schedule) for name, config in penalties.items()
        }

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Terms:
        """The loss of one batch.

        Raises:
            ValueError: a penalty carries the name of one of the coder's own terms.
        """
        values = coder.losses(batch.u, batch.t, codes)
        total = sum(values.values(), start=batch.t.new_zeros(()))
        weights: dict[str, float] = {}
        penalties = self.penalise(batch, coder, codes, values, weights)
        total = total if penalties is None else total + penalties
        return Terms(total, {name: value.detach() for name, value in values.items()}, weights)

    def due(self, step: int) -> bool:
        """Whether any penalty is computed at update number `step`."""
        return any(step % penalty.config.every == 0 for penalty in self.penalties.values())

    def penalise(
        self, batch: StepBatch, coder: Coder, codes: Codes, values: dict[str, Tensor], weights: dict[str, float]
    ) -> Tensor | None:
        """The weighted sum of the penalties that are due, None where none is; their values and weights go into
        `values` and `weights`.

        Raises:
            ValueError: a penalty carries a name that `values` has already.
        """
        total: Tensor | None = None
        for name, penalty in self.penalties.items():
            if name in values:
                raise ValueError(f"penalty {name!r} has the name of a loss term of {coder.config.architecture}")
            every = penalty.config.every
            if batch.step % every:
                continue
            value = penalty(batch, coder, codes)
            schedule = self.schedules[name]
            weight = penalty.config.weight * schedule.factor(batch.step, batch.total_steps) * every
            if schedule.listens:
                schedule.observe(float(value.detach()))
            values[name], weights[name] = value, weight
            total = weight * value if total is None else total + weight * value
        return total

    def hear(self, figures: Mapping[str, float | None]) -> None:
        """Tell the weights that follow a monitor what it found."""
        for schedule in self.schedules.values():
            value = None if schedule.metric is None else figures.get(schedule.metric)
            if value is not None:
                schedule.observe(value)

    def metrics(self) -> dict[str, float]:
        """What the penalties report beside their values, as name/number."""
        return {f"{name}/{key}": number for name, p in self.penalties.items() for key, number in p.metrics().items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain data) that a checkpoint keeps."""
        tensors = {f"{name}.{key}": value for name, p in self.penalties.items() for key, value in p.state().items()}
        return tensors, {name: schedule.state() for name, schedule in self.schedules.items()}

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, penalty in self.penalties.items():
            own = {key.removeprefix(f"{name}."): v for key, v in tensors.items() if key.startswith(f"{name}.")}
            penalty.load_state(own)
        for name, schedule in self.schedules.items():
            schedule.load_state(plain[name])
