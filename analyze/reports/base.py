"""What every report is: a collector with update, merge and finalise over streamed batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from torch import Tensor

from ..result import ReportResult
from ..stream.batches import StreamBatch
from ..subject.subject import Subject


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings common to all reports."""

    kind: str
    """Which report: a key of REPORTS."""


C = TypeVar("C", bound=ReportConfig)


class Report(ABC, Generic[C]):
    """A collector. Build one per subject, feed it every batch, merge the ones of other processes, finalise once.

    Args:
        config: the report's settings.
        subject: the run.
    """

    config_class: ClassVar[type[ReportConfig]]
    title: ClassVar[str]
    reconstructs: ClassVar[bool] = False
    """Whether update needs batch.y and batch.y_hat."""
    by_default: ClassVar[bool] = True
    """Whether it is made without being asked for."""
    of_controls: ClassVar[bool] = True
    """Whether controls get this report too."""

    def __init__(self, config: C, subject: Subject) -> None:
        self.config = config
        self.subject = subject

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process, to be merged there: what was counted, without the run and its tensors."""
        return {k: v for k, v in self.__dict__.items() if k != "subject" and not isinstance(v, Tensor)}

    @abstractmethod
    def update(self, batch: StreamBatch) -> None:
        """Take in one shard."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what a collector of the same run saw of other shards; then it is as if this one had seen them."""

    @abstractmethod
    def finalise(self) -> ReportResult:
        """The result. Called once, after the last update or merge."""


AnyReport = Report[Any]
