"""The loss of a step: the coder's own terms and the penalties, each under its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...shared.coders import Coder, Codes
from ..penalties import Merges, Penalty, PenaltyConfig, StepBatch, build_penalty
from ..penalties.weights import WeightSchedule, build_schedule


@dataclass(frozen=True)
class Terms:
    """The loss of a step.

    Attributes:
        total: the sum that is differentiated.
        values: every term by name, detached; penalties unweighted, the coder's own terms with their weights.
        weights: the weight each penalty had in `total`.
    """

    total: Tensor
    values: dict[str, Tensor]
    weights: dict[str, float]


class Objective:
    """Coder terms + Σ weight·penalty, with the state of adaptive weights and penalties."""

    def __init__(self, penalties: Mapping[str, PenaltyConfig]) -> None:
        self.penalties: dict[str, Penalty] = {name: build_penalty(config) for name, config in penalties.items()}
        self.schedules: dict[str, WeightSchedule] = {
            name: build_schedule(config.schedule) for name, config in penalties.items()
        }

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Terms:
        """The loss of one batch.

        Raises:
            ValueError: a penalty has the name of one of the coder's own terms.
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
        """The weighted sum of the penalties that are due, or None. Adds their values and weights to `values` and
        `weights`.

        Raises:
            ValueError: `values` already has a term of a penalty's name.
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
        """Pass the monitors' figures to the weights that follow them."""
        for schedule in self.schedules.values():
            value = None if schedule.metric is None else figures.get(schedule.metric)
            if value is not None:
                schedule.observe(value)

    def take_merges(self) -> Merges | None:
        """The duplicates that a penalty wants merged after this step; those of the first penalty that names any."""
        found = [merges for penalty in self.penalties.values() if (merges := penalty.take_merges()) is not None]
        return found[0] if found else None

    def metrics(self) -> dict[str, float]:
        """The penalties' further numbers to log, as name/number."""
        return {f"{name}/{key}": number for name, p in self.penalties.items() for key, number in p.metrics().items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain data) for a checkpoint."""
        tensors = {f"{name}.{key}": value for name, p in self.penalties.items() for key, value in p.state().items()}
        return tensors, {name: schedule.state() for name, schedule in self.schedules.items()}

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        for name, penalty in self.penalties.items():
            own = {key.removeprefix(f"{name}."): v for key, v in tensors.items() if key.startswith(f"{name}.")}
            penalty.load_state(own)
        for name, schedule in self.schedules.items():
            schedule.load_state(plain[name])
