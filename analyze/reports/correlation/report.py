"""Correlation: which latents fire together, over token-aligned activations, excluding and including position 0.

Pearson's r of latents i and j over N rows, from exact sums (pair_sums.py):

    r_ij = (N Σ z_i z_j − Σ z_i Σ z_j) / √((N Σ z_i² − (Σ z_i)²)(N Σ z_j² − (Σ z_j)²))

The residual at position 0 is one constant vector (attention is causal), so two latents that share nothing but BOS can
reach r ≈ 1 over all rows. The main figures therefore exclude position 0; beside each is the one
that includes it and, where there are massive rows, the one that excludes them too.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from ....shared.codes.moments import CodeMoments
from ....shared.errors import UsageError
from ...result import ReportResult
from ...stream.batches import StreamBatch
from ...stream.keep import Keeper
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .charts import charts
from .config import CorrelationConfig
from .counted import Counted
from .figures import columns, data, definitions, figures, lead
from .found import Found
from .kept_pairs import pairs_for
from .nulls import null_sample
from .pair_sums import PairSums
from .panel import panel
from .rows_apart import RowsApart
from .tables import tables


class CorrelationReport(Report[CorrelationConfig]):
    """All pairs of latents."""

    config_class: ClassVar[type[ReportConfig]] = CorrelationConfig
    title: ClassVar[str] = "Correlation"

    def __init__(self, config: CorrelationConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        n = subject.n_latents
        if beyond := [latent for latent in config.latents if latent >= n]:
            raise UsageError(
                f"--latents: {subject.name} has {n:,} latents, 0 to {n - 1}; found {', '.join(map(str, beyond))}",
                "analyze runs of one size together, or name latents that all of them have",
            )
        self.rest = self.first = self.massive = CodeMoments.zeros(n)
        self.pairs = pairs_for(n, subject.scratch, config.triangle_gb)
        self.first_rows, self.massive_rows = RowsApart(n), RowsApart(n)
        self.null_ids = null_sample(n, config.null_latents)
        self.null_of = np.full(n, -1, np.int32)
        self.null_of[self.null_ids] = np.arange(len(self.null_ids), dtype=np.int32)
        self.null = PairSums(len(self.null_ids))
        self.tops = Keeper(n, config.sorted_top)

    def update(self, batch: StreamBatch) -> None:
        rest, first = batch.codes.rows(batch.rows.rest), batch.codes.rows(batch.rows.first)
        self.rest += rest.moments
        self.first += first.moments
        self.pairs.add(rest)
        self.first_rows.add(first)
        if self.subject.has_massive:
            massive = batch.codes.rows(self.subject.massive_of(batch.rows))
            self.massive += massive.moments
            self.massive_rows.add(massive)
        # The shuffled null: latent j is read on another row of the shard than latent i. Every row is used exactly once
        # on either side, so n, Σz and Σz² of each latent stay those of `rest`, and only what they share is chance.
        # Seeded by the shard, the null does not depend on the order of shards or on which process reads them.
        shuffle = np.random.default_rng((self.subject.seed, batch.rows.shard)).permutation(rest.n_rows)
        self.null.add(rest.columns(self.null_of, len(self.null_ids)), shuffle)
        self.tops.add(batch.codes, batch.rows)

    def merge(self, other: Self) -> None:
        self.rest += other.rest
        self.first += other.first
        self.massive += other.massive
        self.pairs.merge(other.pairs)  # type: ignore[arg-type]  # both are of one kind: it follows from F
        self.first_rows.merge(other.first_rows)
        self.massive_rows.merge(other.massive_rows)
        self.null.merge(other.null)
        self.tops.merge(other.tops)

    def finalise(self) -> ReportResult:
        config = self.config
        counted = Counted(
            rest=self.rest,
            first=self.first,
            massive=self.massive,
            pairs=self.pairs,
            first_rows=self.first_rows,
            massive_rows=self.massive_rows,
            null=self.null,
            null_ids=self.null_ids,
            tops=self.tops,
        )
        found = Found.of(counted, config, self.subject.geometry, self.subject.seed)
        return ReportResult(
            name="correlation",
            title=self.title,
            lead=lead(found, config, bos=self.subject.cache.has_bos),
            figures=figures(found, config),
            charts=charts(found, config),
            tables=tables(found, counted, config),
            columns=columns(found),
            data=data(found, counted, config),
            panel=panel(found),
            tables_on_disk={"pairs": found.table.columns(self.rest.n), "neighbours": found.neighbours.columns()},
            definitions=definitions(config),
        )
