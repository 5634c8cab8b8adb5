"""The reports, one file each. To add one: a file with a frozen config dataclass (`kind: Literal["name"]`) and a
:class:`Report`, and its line in REPORTS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyze.reports.absorption import Absorption
from analyze.reports.base import AnyReport, Report, ReportConfig, Subject
from analyze.reports.correlation import Correlation
from analyze.reports.cross_entropy import CrossEntropy
from analyze.reports.global_report import Global
from analyze.reports.position import Position
from analyze.reports.probing import Probing
from analyze.reports.top_activations import TopActivations
from shared.registry import keyed

REPORTS: dict[str, type[AnyReport]] = {
    "global": Global,
    "correlation": Correlation,
    "position": Position,
    "top_activations": TopActivations,
    "cross_entropy": CrossEntropy,
    "absorption": Absorption,
    "probing": Probing,
}

if TYPE_CHECKING:
    Reports = dict[str, ReportConfig]
else:
    Reports = keyed({name: report.config_class for name, report in REPORTS.items()}, "kind")

__all__ = ["REPORTS", "AnyReport", "Report", "ReportConfig", "Reports", "Subject"]
