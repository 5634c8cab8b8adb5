"""The exact state of a run, to and from a checkpoint: a resumed run is bit-identical to an uninterrupted one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...shared.errors import DataError, PipelineError
from ...shared.runs.folder import Checkpoint, Run
from ..step.clock import StepClock
from ..step.fused import not_finite
from ..step.trainee import Trainee


@dataclass(frozen=True)
class Captured:
    """What a checkpoint of one step holds. The tensors are the run's own: they change with its next step."""

    step: int
    coder: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def capture(trainee: Trainee, position: Mapping[str, Any]) -> Captured:
    """The state of `trainee` at its current step.

    Args:
        position: the stream's position after the rows trained on so far.

    Raises:
        PipelineError: a gradient of the fused step was not finite, so the state at this step does not exist.
    """
    if trainee.fused is not None and not trainee.fused.finite:
        raise PipelineError(*not_finite(trainee, trainee.step))
    tensors = {f"adam.{name}": value for name, value in _optimizer_tensors(trainee).items()}
    penalty_tensors, penalty_state = trainee.objective.state()
    tensors |= {f"penalty.{name}": value for name, value in penalty_tensors.items()}
    if trainee.watch is not None:
        tensors |= {f"monitor.{name}": value for name, value in trainee.watch.state().items()}
    if trainee.samples is not None:
        tensors |= {f"sample.{name}": value for name, value in trainee.samples.state().items()}
    if trainee.fused is not None:
        tensors |= {f"fused.{name}": value for name, value in trainee.fused.save_state().items()}
    tensors["rng"] = trainee.generator.get_state()
    tensors |= {f"average.{name}": value for name, value in trainee.average.items()}
    # NaN: the fused step's AuxK, before anything was dead
    averages = {name: value for name, value in trainee.averages.items() if not bool(value.isnan())}
    tensors |= {f"term.{name}": value for name, value in averages.items()}
    state = {
        "tokens": trainee.tokens,
        "total_steps": trainee.total_steps,
        "seconds": trainee.clock.seconds,
        "position": dict(position),
        "penalties": penalty_state,
        "untrained": trainee.untrained,
        "reseeded": trainee.reseeded,
        "merged": trainee.merged,
    }
    coder = trainee.coder.state_dict()
    if trainee.sharing is not None:
        coder, tensors = trainee.sharing.collected(coder), trainee.sharing.collected(tensors)
    return Captured(trainee.step, coder, tensors, copy.deepcopy(state))


def restore(run: Run, trainee: Trainee, checkpoint: Checkpoint) -> None:
    """Bring a new trainee to the state in a checkpoint. Raises DataError if its coder or number of steps differs."""
    state, device = checkpoint.state, trainee.coder.b_enc.device
    if state["total_steps"] != trainee.total_steps:
        raise DataError(
            f"run {run.name} was planned for {state['total_steps']} steps, these settings give {trainee.total_steps}",
            "resume with the data settings of the run, or train under another --name",
        )
    expected = {name: tuple(value.shape) for name, value in trainee.coder.state_dict().items()}
    if trainee.sharing is not None:
        coder, optimizer = (trainee.sharing.parts(one) for one in (checkpoint.coder, checkpoint.optimizer))
        checkpoint = replace(checkpoint, coder=coder, optimizer=optimizer)
    found = {name: tuple(value.shape) for name, value in checkpoint.coder.items()}
    if expected != found:
        raise DataError(f"checkpoint {checkpoint.step} of run {run.name} holds another coder: {found}, not {expected}")
    trainee.coder.load_state_dict(checkpoint.coder)
    _load_optimizer(trainee, _below("adam.", checkpoint.optimizer))
    penalty = {name: value.to(device) for name, value in _below("penalty.", checkpoint.optimizer).items()}
    trainee.objective.load_state(penalty, state["penalties"])
    if trainee.watch is not None:
        trainee.watch.load_state(_below("monitor.", checkpoint.optimizer), device)
    if trainee.samples is not None:
        trainee.samples.load_state(_below("sample.", checkpoint.optimizer))
    trainee.generator.set_state(checkpoint.optimizer["rng"])
    trainee.average = {name: value.to(device) for name, value in _below("average.", checkpoint.optimizer).items()}
    trainee.averages = {name: value.to(device) for name, value in _below("term.", checkpoint.optimizer).items()}
    if trainee.fused is not None:
        trainee.fused.load_state(_below("fused.", checkpoint.optimizer))
    trainee.step, trainee.tokens = checkpoint.step, state["tokens"]
    trainee.clock = StepClock(device, state["seconds"])
    trainee.untrained = dict(state["untrained"])
    trainee.reseeded, trainee.merged = state["reseeded"], state["merged"]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without the prefix."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _trained(trainee: Trainee) -> list[str]:
    """Names of the parameters that the optimizer moves, in its order."""
    return [name for name, parameter in trainee.coder.named_parameters() if parameter.requires_grad]


def _optimizer_tensors(trainee: Trainee) -> dict[str, Tensor]:
    state: dict[int, dict[str, Any]] = trainee.optimizer.state_dict()["state"]
    names = _trained(trainee)
    return {f"{names[i]}.{key}": torch.as_tensor(v) for i, moments in state.items() for key, v in moments.items()}


def _load_optimizer(trainee: Trainee, tensors: Mapping[str, Tensor]) -> None:
    names = _trained(trainee)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, key = name.rsplit(".", 1)
        state.setdefault(names.index(parameter), {})[key] = value
    document = trainee.optimizer.state_dict()
    trainee.optimizer.load_state_dict({**document, "state": state})
