"""What a tuned run says of its tuning: figures before and after, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIGURES = {
    "fvu": "FVU",
    "fvu_dims": "FVU per dimension",
    "ce_clean": "cross-entropy of the model",
    "ce": "cross-entropy with the coder",
    "ce_zero": "cross-entropy with zero",
    "ce_recovered": "cross-entropy recovered",
    "kl": "KL (nats)",
    "l0": "L0",
    "dead": "latents that did not fire",
}
"""Key of a figure → its name. All exclude position 0."""


def before_and_after(tuned: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """(name, before, after) of each figure in the entry `tuned` of a run's summary."""
    before, after = tuned["before"], tuned["after"]
    return [(name, before.get(key), after.get(key)) for key, name in FIGURES.items()]
