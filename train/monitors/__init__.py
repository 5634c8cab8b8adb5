"""Monitors measure the codes of the last batches while a coder trains: one file and one line in MONITORS each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...shared.config.registry import keyed
from .base import Finding, Monitor, MonitorConfig, Seen
from .correlation import CorrelationMonitor
from .position import PositionMonitor
from .utilisation import UtilisationMonitor

__all__ = ["MONITORS", "Finding", "Monitor", "MonitorConfig", "Monitors", "Seen", "build_monitor"]

MONITORS: dict[str, type[Monitor]] = {
    "correlation": CorrelationMonitor,
    "position": PositionMonitor,
    "utilisation": UtilisationMonitor,
}

if TYPE_CHECKING:
    Monitors = dict[str, MonitorConfig]
else:
    Monitors = keyed({name: monitor.config_class for name, monitor in MONITORS.items()})


def build_monitor(config: MonitorConfig) -> Monitor:
    """The monitor that the settings name."""
    return MONITORS[config.kind](config)
