"""Whether the runs of a command fit into memory, looked at before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

from ..shared.console import count, size
from ..shared.errors import PipelineError
from ..shared.memory import free_memory
from .plan import Sizes

_USABLE = 0.9
"""Share of the free memory that a suggested setting fills: the arithmetic leaves out what libraries take."""


def refuse_too_large(groups: Sequence[Sizes]) -> None:
    """Compares what each group needs (coders, gradients, Adam, a batch, windows of codes, blocks of rows) with what is
    free on its device.

    Raises:
        PipelineError: it does not fit; names both numbers, and a setting with which it does.
    """
    for group in groups:
        needed, free = sum(group.bytes.values()), free_memory(group.device, group.processes)
        if needed > free:
            parts = ", ".join(f"{name} {size(n)}" for name, n in group.bytes.items() if n)
            each = f" in each of {group.processes} processes" if group.processes > 1 else ""
            raise PipelineError(
                f"training {count(len(group.configs), 'run')} on {group.device} needs {size(needed)}{each} ({parts}), "
                f"{size(free)} are free",
                _cure(group, free),
            )


def _cure(group: Sizes, free: int) -> str:
    """A setting with which the group fits."""
    usable = int(_USABLE * free)
    training = sum(group.bytes.values()) - group.bytes["data"]
    if training < usable:
        return (
            "--set train.data.resident=auto --set train.data.pool_rows=null "
            f"--set train.data.memory_gb={(usable - training) / 1e9:.3g} (fewer rows in memory)"
        )
    room = usable - min(group.bytes["data"], usable // 2)
    if len(group.configs) > 1 and max(map(group.training_bytes, group.configs)) < room:
        return "train the runs one after the other: one command for each"
    config = max(group.configs, key=group.training_bytes)
    smaller = [
        (group.training_bytes(config, latents=n), f"--set train.coder.latents={n}")
        for n in _halves(config.coder.latents)
    ]
    shorter = [
        (group.training_bytes(config, batch=n), f"--set train.data.batch_size={n}")
        for n in _halves(config.data.batch_size)
    ]
    batches_decide = 2 * group.bytes["batches"] > training
    for needed, setting in [*shorter, *smaller] if batches_decide else [*smaller, *shorter]:
        if needed < room:
            return f"{setting}, or end other programs"
    return "end other programs, lower train.coder.latents and train.data.batch_size, or train with more memory"


def _halves(number: int) -> list[int]:
    """The number halved again and again, down to 16."""
    found = []
    while number >= 32:
        number //= 2
        found.append(number)
    return found or [number]
