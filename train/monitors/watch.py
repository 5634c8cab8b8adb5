"""The monitors of one run: which steps they see, and when they report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...shared.coders import Coder, Codes
from ..window.codes import CodeWindow
from . import Monitor, MonitorConfig, build_monitor
from .base import Histogram, Seen


@dataclass(frozen=True)
class MonitorReport:
    """The monitors' results after one step.

    Attributes:
        figures: by <monitor>/<figure>.
        details: by monitor: its figures and its other results.
        histograms: by <monitor>/<name>.
    """

    step: int
    batches: int
    rows: int
    figures: dict[str, float | int | None]
    details: dict[str, dict[str, Any]]
    histograms: dict[str, Histogram]

    def to_dict(self) -> dict[str, Any]:
        return {"step": self.step, "batches": self.batches, "rows": self.rows, **self.details}


class Watch:
    """Shows the monitors the codes of the last `window` steps, every `every` steps and after the last one.

    Codes are kept only while a report is near, so most of a long interval costs nothing.

    Args:
        total_steps: of the run.
        ctx: tokens in a sequence.
    """

    def __init__(
        self, monitors: Mapping[str, MonitorConfig], *, every: int, window: int, total_steps: int, ctx: int
    ) -> None:
        self.monitors: dict[str, Monitor] = {name: build_monitor(config) for name, config in monitors.items()}
        self.every, self.window, self.total_steps, self.ctx = every, window, total_steps, ctx
        self._kept = CodeWindow(window)

    def due(self, step: int) -> bool:
        """Whether there is a report after update number `step`."""
        return step % self.every == 0 or step == self.total_steps

    def wants(self, step: int) -> bool:
        """Whether the codes of update number `step` belong to the next report."""
        return min(-(-step // self.every) * self.every, self.total_steps) - step < self.window

    def observe(self, codes: Codes, rows_position: Tensor) -> None:
        """Keep the codes of a step for which `wants` holds."""
        self._kept.push(codes, rows_position)

    def report(self, step: int, coder: Coder) -> MonitorReport:
        """Run the monitors, and forget codes that no later report needs."""
        seen = Seen(self._kept.codes(), self._kept.position(), coder, self.ctx)
        figures: dict[str, float | int | None] = {}
        details: dict[str, dict[str, Any]] = {}
        histograms: dict[str, Histogram] = {}
        for name, monitor in self.monitors.items():
            found = monitor.look(seen)
            figures |= {f"{name}/{figure}": value for figure, value in found.figures.items()}
            details[name] = {**found.figures, **found.details}
            histograms |= {f"{name}/{histogram}": value for histogram, value in found.histograms.items()}
        batches = len(self._kept)
        if self.window <= self.every:
            self._kept.clear()  # the next report needs none of them
        return MonitorReport(step, batches, seen.codes.n_rows, figures, details, histograms)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        return self._kept.state()

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restore what `state` returned."""
        self._kept.load_state(state, device)
