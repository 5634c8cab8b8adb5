"""The reports: one folder each, named after what it looks at.

To add one:

1. `reports/<name>/config.py`: a frozen dataclass that extends :class:`ReportConfig`, with `kind: Literal["<name>"]` and
   a docstring under every setting.
2. `reports/<name>/report.py`: a class that extends :class:`Report` (base.py): `update` counts a shard, `merge` adds
   another collector's counts, `finalise` makes the :class:`~..result.ReportResult`.
3. Its line in REPORTS, below.

Settings, the terminal's table, Markdown, HTML, Parquet, comparisons and sweeps follow: each :class:`~..result.Figure`
says where it is shown. Inside the folder, imports point down: the collector at the top hands what it counted, in a
frozen dataclass, to scores, figures, charts and tables, which know nothing of the collector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...shared.config.registry import keyed
from .absorption.report import AbsorptionReport
from .base import AnyReport, Report, ReportConfig
from .correlation.report import CorrelationReport
from .cross_entropy.report import CrossEntropyReport
from .position.report import PositionReport
from .probing.report import ProbingReport
from .reconstruction.report import ReconstructionReport
from .top_activations.report import TopActivationsReport

REPORTS: dict[str, type[AnyReport]] = {
    "global": ReconstructionReport,
    "correlation": CorrelationReport,
    "position": PositionReport,
    "top_activations": TopActivationsReport,
    "cross_entropy": CrossEntropyReport,
    "absorption": AbsorptionReport,
    "probing": ProbingReport,
}
"""Kind → report, in the order of the page."""

if TYPE_CHECKING:
    Reports = dict[str, ReportConfig]
else:
    Reports = keyed({name: report.config_class for name, report in REPORTS.items()}, "kind")

__all__ = ["REPORTS", "AnyReport", "Report", "ReportConfig", "Reports"]
