"""Absorption reduction efficiency: how much a loss reduces absorption, and at what cost.

(A₀ − A)/A₀, per cent of FVU given up and per cent of training time added, against a baseline at matched L0, paired by
seed, over at least three seeds for an interval. This project's own figure (the sources name it without defining it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..probes.intervals import Estimate, over_seeds

FREE = 1e-3
"""A cost below a tenth of a per cent counts as none: a ratio to it would have no meaning."""


@dataclass(frozen=True)
class Trained:
    """The figures of one run.

    Attributes:
        absorption: None where it could not be evaluated.
        fvu, l0: None where they were not measured.
        seconds: training time.
    """

    seed: int
    absorption: float | None
    fvu: float | None
    l0: float | None
    seconds: float | None


@dataclass(frozen=True)
class Efficiency:
    """Means over seeds; intervals where there are three or more.

    Attributes:
        status: "measured", or why not.
        reduction: (A₀ − A)/A₀; negative when absorption rose.
        fvu_cost, time_cost: relative increases.
        per_fvu, per_time: mean reduction in per cent per per cent of cost; None where the cost is none (or negative).
    """

    status: str
    reduction: Estimate | None = None
    mean_reduction: float | None = None
    fvu_cost: float | None = None
    time_cost: float | None = None
    per_fvu: float | None = None
    per_time: float | None = None
    seeds: int = 0


def reduction_efficiency(
    baseline: Sequence[Trained], treated: Sequence[Trained], l0_tolerance: float = 0.05
) -> Efficiency:
    """Compare runs that differ in one setting, paired by seed.

    Args:
        l0_tolerance: how far (relative) the mean L0 of a pair may differ; beyond, absorption is not comparable.
    """
    plain = {run.seed: run for run in baseline}
    pairs = [(plain[run.seed], run) for run in treated if run.seed in plain]
    if not pairs:
        return Efficiency("no seed was trained with both settings")
    usable: list[tuple[float, float]] = []
    costs: dict[str, list[float]] = {"FVU": [], "training time": []}
    for a, b in pairs:
        if a.absorption is None or b.absorption is None:
            return Efficiency(f"absorption was not evaluable (seed {a.seed})", seeds=len(pairs))
        if a.l0 is None or b.l0 is None:
            return Efficiency(f"L0 was not measured (seed {a.seed})", seeds=len(pairs))
        if abs(b.l0 - a.l0) > l0_tolerance * a.l0:
            return Efficiency(
                f"L0 differs: {a.l0:.1f} and {b.l0:.1f} (seed {a.seed}); the comparison requires equal sparsity",
                seeds=len(pairs),
            )
        if a.absorption <= 0:
            return Efficiency(f"the baseline has no absorption to reduce (seed {a.seed})", seeds=len(pairs))
        for what, before, after in (("FVU", a.fvu, b.fvu), ("training time", a.seconds, b.seconds)):
            if before is None or after is None:
                return Efficiency(f"{what} was not measured (seed {a.seed})", seeds=len(pairs))
            if before <= 0:
                return Efficiency(f"the baseline's {what} is 0 (seed {a.seed}): no relative cost", seeds=len(pairs))
            costs[what].append(after / before - 1)
        usable.append((a.absorption, b.absorption))
    reductions = [(a - b) / a for a, b in usable]
    fvu_cost, time_cost = (float(np.mean(found)) for found in costs.values())
    mean = float(np.mean(reductions))
    return Efficiency(
        status="measured",
        reduction=over_seeds(reductions),
        mean_reduction=mean,
        fvu_cost=fvu_cost,
        time_cost=time_cost,
        per_fvu=mean / fvu_cost if fvu_cost > FREE else None,
        per_time=mean / time_cost if time_cost > FREE else None,
        seeds=len(pairs),
    )
