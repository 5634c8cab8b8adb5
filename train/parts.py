"""Runs that do not all fit in memory at once, in parts that do."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from ..shared.memory import free_memory
from ..shared.runs.folder import open_run
from .config import TrainConfig
from .plan import Group
from .runs.session import is_run

SHARE_OF_MEMORY = 0.5
"""Share of the free memory that runs training side by side may take."""


def side_by_side(
    group: Group, at_once: int | None, wanted: Container[Path], free: int | None = None
) -> list[list[TrainConfig]]:
    """The unfinished runs of a group, in parts of at most `at_once`, or as many as fit in half of the free memory.

    Args:
        wanted: folders of the runs to train.
        free: bytes; None: what is free on the group's device.
    """
    sizes = {run["name"]: run["bytes"] for run in group.to_dict()["runs"]}
    budget = (free_memory(group.device) if free is None else free) * SHARE_OF_MEMORY - group.stream.pool_bytes
    parts: list[list[TrainConfig]] = []
    taken = 0
    for config in group.configs:
        if config.path not in wanted or state_of(config) == "finished":
            continue
        need = sizes[config.run_name]
        full = not parts or (len(parts[-1]) >= at_once if at_once is not None else taken + need > budget)
        if full:
            parts.append([])
            taken = 0
        parts[-1].append(config)
        taken += need
    return parts


def state_of(config: TrainConfig) -> str:
    """What a run's folder holds, in words: new, begun, at step N, or finished."""
    if not is_run(config.path):
        return "new"
    run = open_run(config.path, allow_incomplete=True)
    if run.complete:
        return "finished"
    saved = run.checkpoints()
    return f"at step {int(saved[-1].name.removeprefix('step_')):,}" if saved else "begun"
