"""Position and BOS bias: where in the sequence each latent fires.

Position 0 is a bin of its own; the other positions are cut into ten equal bins. Every measure has a null, every test is
corrected for the number of latents (Benjamini–Hochberg) and must also pass an effect gate, and a latent that fires too
rarely is marked instead of scored.
"""

from __future__ import annotations

from typing import ClassVar, Self

from ...result import ReportResult
from ...stream.batches import StreamBatch
from ...stream.keep import Keeper
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .charts import charts
from .config import PositionConfig
from .counts import counts_for
from .figures import columns, data, definitions, figures, lead, on_disk
from .panel import panel
from .scores import first_share, pooled_first_share, score
from .tables import tables


class PositionReport(Report[PositionConfig]):
    """Firings by position."""

    config_class: ClassVar[type[ReportConfig]] = PositionConfig
    title: ClassVar[str] = "Position and BOS bias"

    def __init__(self, config: PositionConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        n = subject.n_latents
        self.counts = counts_for(subject, config)
        self.top = Keeper(n, config.top)
        self.top_distinct = Keeper(n, config.top, distinct=True, context=config.context)

    def update(self, batch: StreamBatch) -> None:
        codes, rows = batch.codes, batch.rows
        self.counts.add(codes, rows, self.subject.massive_of(rows))
        self.top.add(codes, rows)
        self.top_distinct.add(codes, rows)

    def merge(self, other: Self) -> None:
        # Of one subject, so of one kind.
        self.counts.merge(other.counts)  # type: ignore[arg-type]
        self.top.merge(other.top)
        self.top_distinct.merge(other.top_distinct)

    def finalise(self) -> ReportResult:
        config, cache, bin_names = self.config, self.subject.cache, self.counts.bins.names
        scores = score(
            self.counts.blocks(), config, first_share(self.top, cache), first_share(self.top_distinct, cache)
        )
        top, top_distinct = (pooled_first_share(kept, cache) for kept in (self.top, self.top_distinct))
        return ReportResult(
            name="position",
            title=self.title,
            lead=lead(scores, top, top_distinct, bos=cache.has_bos),
            figures=figures(scores, config, top=top, top_distinct=top_distinct),
            charts=charts(scores, self.counts.bins, config),
            tables=tables(scores),
            columns=columns(scores, config),
            data=data(scores, bin_names),
            panel=panel(scores, bin_names),
            tables_on_disk={"position": on_disk(scores, config)},
            definitions=definitions(config),
        )
