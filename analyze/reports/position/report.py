"""Position and BOS bias: where in the sequence each latent fires.

Position 0 is a bin of its own; the other positions are cut into ten equal bins. Every measure has a null, every test is
corrected for the number of latents (Benjamini–Hochberg) and must also pass an effect gate, and a latent that fires too
rarely is marked instead of scored.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.parallel import over_latents
from ....shared.codes.sparse import SparseCodes
from ...result import ReportResult
from ...stream.batches import ShardRows, StreamBatch
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .charts import charts
from .config import PositionConfig
from .counts import Counts, MassiveCounts
from .figures import columns, data, definitions, figures, lead, on_disk
from .kernels import by_bin, shifted_bins
from .panel import panel
from .scores import pooled_first_share, score
from .shifts import shift_slots
from .tables import tables


class PositionReport(Report[PositionConfig]):
    """Firings by position."""

    config_class: ClassVar[type[ReportConfig]] = PositionConfig
    title: ClassVar[str] = "Position and BOS bias"

    def __init__(self, config: PositionConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        self.counts = Counts.zeros(subject.n_latents, subject.n_positions, config, massive=subject.has_massive)

    def update(self, batch: StreamBatch) -> None:
        codes, rows, counts = batch.codes, batch.rows, self.counts
        starts, local, _ = codes.by_latent
        values = codes.latent_values
        bin_of = np.where(rows.keep, counts.bins.profile_of[rows.position], -1).astype(np.int32)
        counts.rows[:] += np.bincount(bin_of[rows.keep], minlength=counts.bins.n_profile)

        def count(first: int, stop: int) -> None:
            by_bin(
                starts,
                local,
                values,
                bin_of=bin_of,
                counts=counts.firings,
                sums=counts.sums,
                first=first,
                stop=stop,
            )

        over_latents(count, codes.fired + 1)
        self._shift(codes, rows, skip=1, counts=counts.shifted)
        self._shift(codes, rows, skip=0, counts=counts.shifted_all)
        if counts.massive is not None:
            self._add_massive(counts.massive, batch)
        counts.top.add(codes, rows)
        counts.top_distinct.add(codes, rows)

    def _add_massive(self, counts: MassiveCounts, batch: StreamBatch) -> None:
        """Count the massive rows of a shard by themselves. Shifts add up over rows, so their shifted firings are the
        massive rows' part in those of all rows."""
        massive, rows, bins = self.subject.massive_of(batch.rows), batch.rows, self.counts.bins
        bin_of = bins.profile_of[rows.position].astype(np.int64)
        counts.rows[:] += np.bincount(bin_of[massive], minlength=bins.n_profile)
        codes = batch.codes.where(massive)
        at = codes.latents.astype(np.int64) * bins.n_profile + np.repeat(bin_of, codes.l0)
        counts.firings[:] += np.bincount(at, minlength=counts.firings.size).reshape(counts.firings.shape)
        self._shift(codes, rows, skip=1, counts=counts.shifted)

    def _shift(self, codes: SparseCodes, rows: ShardRows, *, skip: int, counts: NDArray[np.int32]) -> None:
        """Count the firings of `shifts` replicates, in each of which every sequence is rotated by its own random
        amount.

        The amounts depend on the seed, the shard and `skip` alone: they are drawn once for all coders of a cache, and
        the order of shards or the process that reads them changes nothing.
        """
        starts, local, _ = codes.by_latent
        bins, shifts, seed = self.counts.bins, self.config.shifts, self.subject.seed
        n_bins = bins.n_coarse - skip
        make = partial(
            shift_slots,
            rows,
            shifts=shifts,
            skip=skip,
            to_bin=bins.coarse_of_position,
            n_bins=n_bins,
            rng=np.random.default_rng((seed, rows.shard, skip)),
        )
        slot = rows.once(("shifts", shifts, skip, bins.n_coarse, seed), make)

        def count(first: int, stop: int) -> None:
            shifted_bins(starts, local, slot=slot, counts=counts, first=first, stop=stop)

        over_latents(count, codes.fired)

    def merge(self, other: Self) -> None:
        self.counts.merge(other.counts)

    def finalise(self) -> ReportResult:
        config, cache, counts = self.config, self.subject.cache, self.counts
        scores = score(counts, config, cache)
        top, top_distinct = (pooled_first_share(kept, cache) for kept in (counts.top, counts.top_distinct))
        return ReportResult(
            name="position",
            title=self.title,
            lead=lead(scores, top, top_distinct, bos=cache.has_bos),
            figures=figures(scores, config, top=top, top_distinct=top_distinct),
            charts=charts(scores, counts, config),
            tables=tables(scores),
            columns=columns(scores, config),
            data=data(scores, counts.bins.names),
            panel=panel(scores, counts.bins.names),
            tables_on_disk={"position": on_disk(scores, config)},
            definitions=definitions(config),
        )
