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

from ...shared.config.registry import Registry, keyed
from .absorption.config import AbsorptionConfig
from .base import AnyReport, Report, ReportConfig
from .correlation.config import CorrelationConfig
from .cross_entropy.config import CrossEntropyConfig
from .crosscoder.config import CrosscoderConfig
from .description_length.config import DescriptionLengthConfig
from .meta_structure.config import MetaStructureConfig
from .position.config import PositionConfig
from .probing.config import ProbingConfig
from .reconstruction.config import ReconstructionConfig
from .scr.config import ScrConfig
from .top_activations.config import TopActivationsConfig
from .tpp.config import TppConfig

REPORTS: Registry[type[AnyReport]] = Registry(
    __package__,
    {
        "global": (ReconstructionConfig, "reconstruction.report.ReconstructionReport"),
        "crosscoder": (CrosscoderConfig, "crosscoder.report.CrosscoderReport"),
        "correlation": (CorrelationConfig, "correlation.report.CorrelationReport"),
        "position": (PositionConfig, "position.report.PositionReport"),
        "top_activations": (TopActivationsConfig, "top_activations.report.TopActivationsReport"),
        "cross_entropy": (CrossEntropyConfig, "cross_entropy.report.CrossEntropyReport"),
        "description_length": (DescriptionLengthConfig, "description_length.report.DescriptionLengthReport"),
        "meta_structure": (MetaStructureConfig, "meta_structure.report.MetaStructureReport"),
        "absorption": (AbsorptionConfig, "absorption.report.AbsorptionReport"),
        "probing": (ProbingConfig, "probing.report.ProbingReport"),
        "scr": (ScrConfig, "scr.report.ScrReport"),
        "tpp": (TppConfig, "tpp.report.TppReport"),
    },
)
"""Kind → report, in the order of the page."""

if TYPE_CHECKING:
    Reports = dict[str, ReportConfig]
else:
    Reports = keyed(REPORTS.configs(), "kind")

__all__ = ["REPORTS", "AnyReport", "Report", "ReportConfig", "Reports"]
