"""The reports, one file each. To add one: a file with a frozen config dataclass (`kind: Literal["name"]`) and a
:class:`Report`, and its line in REPORTS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...shared.config.registry import keyed
from ..subject.subject import Subject
from .absorption.report import AbsorptionReport
from .base import AnyReport, Report, ReportConfig
from .correlation.report import CorrelationReport
from .cross_entropy.report import CrossEntropyReport
from .position.report import PositionReport
from .probing.report import ProbingReport
from .reconstruction.report import ReconstructionReport
from .top_activations.report import TopActivations

REPORTS: dict[str, type[AnyReport]] = {
    "global": ReconstructionReport,
    "correlation": CorrelationReport,
    "position": PositionReport,
    "top_activations": TopActivations,
    "cross_entropy": CrossEntropyReport,
    "absorption": AbsorptionReport,
    "probing": ProbingReport,
}

if TYPE_CHECKING:
    Reports = dict[str, ReportConfig]
else:
    Reports = keyed({name: report.config_class for name, report in REPORTS.items()}, "kind")

__all__ = ["REPORTS", "AnyReport", "Report", "ReportConfig", "Reports", "Subject"]
