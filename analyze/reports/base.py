"""What every report is: a collector with update, merge and finalise over streamed batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

if TYPE_CHECKING:
    from ..result import ReportResult
    from ..stream.batches import StreamBatch
    from ..subject.subject import Subject


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings common to all reports."""

    kind: str
    """Which report: a key of REPORTS."""
    by_default: ClassVar[bool] = True
    """Made by default; otherwise only when requested."""
    needs_tokens: ClassVar[bool] = False
    """Cannot be made on a cache of activations without tokens."""


C = TypeVar("C", bound=ReportConfig)


class Report(ABC, Generic[C]):
    """A collector: build one per subject, feed it every batch, merge those of other processes, finalise once.

    Args:
        config: the report's settings.
        subject: the run.
    """

    config_class: ClassVar[type[ReportConfig]]
    title: ClassVar[str]
    reconstructs: ClassVar[bool] = False
    """Whether `update` needs batch.y and batch.y_hat."""
    of_controls: ClassVar[bool] = True
    """Whether controls get this report too (untrained and random coders, for comparison)."""

    @classmethod
    def lacks(cls, subject: Subject) -> str | None:
        """Why this report has no meaning for a subject, or None."""
        return None

    together: ClassVar[bool] = False
    """Whether the collectors of all subjects on a cache are finalised at once, because they share work."""
    about_some: ClassVar[bool] = False
    """Whether nothing is said where the report is not made: it is about one kind of coder."""

    def __init__(self, config: C, subject: Subject) -> None:
        self.config = config
        self.subject = subject

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to another process to be merged there: the counts, without the run and its tensors."""
        from torch import Tensor

        return {k: v for k, v in self.__dict__.items() if k != "subject" and not isinstance(v, Tensor)}

    @abstractmethod
    def update(self, batch: StreamBatch) -> None:
        """Count one shard of the cache."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the counts of a collector of the same run over other shards, as if this one had read them."""

    @abstractmethod
    def finalise(self) -> ReportResult:
        """The result. Called once, after the last update or merge."""

    @classmethod
    def finalise_all(cls, reports: Sequence[Self]) -> list[ReportResult]:
        """The results of several subjects' collectors, in their order; called instead where `together` is set."""
        return [report.finalise() for report in reports]


AnyReport = Report[Any]

R = TypeVar("R", bound=AnyReport)
T = TypeVar("T")


def of_several_sites(subject: Subject) -> str | None:
    """What `lacks` says where a report is about one site and the coder predicts several; else None."""
    return "for coders of one site" if subject.coder.n_targets > 1 else None


def once_per_target(reports: Sequence[R], make: Callable[[R], T]) -> list[T]:
    """make(report) for each report, made once for those whose coders share a target."""
    of_target = {report.subject.target: report for report in reports}
    made = {target: make(report) for target, report in of_target.items()}
    return [made[report.subject.target] for report in reports]
