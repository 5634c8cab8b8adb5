"""The dataset of a harvest in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dataset_text(dataset: Any) -> str:
    """The setting `harvest.dataset` as plain data: a name, a list of names, or a mixture with the share of each."""
    if not isinstance(dataset, (list, tuple)):
        return str(dataset)
    total = sum(float(one.get("weight", 1)) for one in dataset if isinstance(one, Mapping))
    return ", ".join(_part(one, total) if isinstance(one, Mapping) else str(one) for one in dataset)


def _part(part: Mapping[str, Any], total: float) -> str:
    source = part["source"] if isinstance(part["source"], str) else " + ".join(part["source"])
    subset = f" {part['subset']}" if part.get("subset") else ""
    return f"{source}{subset} ({float(part.get('weight', 1)) / total:.3g} of the documents)"
