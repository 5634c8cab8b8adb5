"""The eight curves of a training, as figures picked from lines of metrics.jsonl: losses, active latents, pairs.

Which penalty or monitor logged a figure of pairs does not matter: the first that is there counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]
Pick = Callable[[Line], float | None]


def named(name: str) -> Pick:
    """The metric of that name."""
    return lambda line: line.get(name)


def ending(*names: str) -> Pick:
    """The first metric that ends so, whichever penalty logged it; several penalties: the largest."""

    def pick(line: Line) -> float | None:
        for name in names:
            found = [value for key, value in line.items() if key.endswith(f"/{name}") and value is not None]
            if found:
                return float(max(found))
        return None

    return pick


def penalties(line: Line) -> float | None:
    """What all penalties add to the loss: Σ weight · value."""
    terms = [key.removesuffix("/weight") for key in line if key.endswith("/weight")]
    found = [line[name] * line[f"{name}/weight"] for name in terms if line.get(name) is not None]
    return float(sum(found)) if found else None


PICKS: dict[str, Pick] = {
    "loss": named("loss"),
    "reconstruction": named("reconstruction"),
    "sparsity": named("sparsity"),
    "orthogonality": penalties,
    "active": named("active"),
    "unique": ending("unique_latents"),
    "max_pair": ending("max_overlap", "max_r"),
    "mean_pair": ending("mean_overlap", "mean_max_r"),
}
"""Key → the curve's value in a line of metrics, None where it was not logged."""


def last_values(lines: Sequence[Line]) -> dict[str, float | None]:
    """Of each curve the last value that was logged; None where none was."""
    return {
        key: next((float(found) for line in reversed(lines) if (found := pick(line)) is not None), None)
        for key, pick in PICKS.items()
    }
