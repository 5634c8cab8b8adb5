"""A run that diverges is noticed, named, and stopped if the settings say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOSS_TIMES, FVU_LIMIT, CODE_LIMIT = 1000.0, 10.0, 1e36
"""Loss as a multiple of its first value, FVU of a batch, and activation, beyond which a run has diverged."""


def divergence(line: Mapping[str, Any], first_loss: float | None, largest_code: float) -> str | None:
    """What shows in a line of metrics that the run has diverged; None if nothing does.

    Args:
        first_loss: of the run's first line.
        largest_code: the largest activation of the step.
    """
    loss, fvu = line.get("loss"), line.get("fvu")
    if largest_code > CODE_LIMIT:
        return f"an activation of {largest_code:.3g} is near the limit of float32"
    if fvu is not None and fvu > FVU_LIMIT:
        return f"the FVU of a batch is {fvu:.3g}: worse than {FVU_LIMIT:g} times the mean"
    if loss is not None and first_loss and first_loss > 0 and loss > LOSS_TIMES * first_loss:
        return f"the loss is {loss:.3g}, {loss / first_loss:,.0f} times its first value"
    return None
