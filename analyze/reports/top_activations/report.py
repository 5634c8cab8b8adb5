"""Top activations: what each latent fires on, in context, and how its samples spread.

Per latent: its largest activations on ordinary rows with identical contexts once, examples from each quarter of its
activation distribution, and rows with its favourite tokens on which it stays silent. All are gathered in the one pass:
the largest by a bounded list, the quarters from a uniform sample of its firings, the silent ones from a uniform sample
of rows.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.parallel import over_latents
from ....shared.hashing import mix
from ...result import ReportResult
from ...stream.batches import StreamBatch
from ...stream.keep import Keeper
from ...stream.kept_codes import KeptCodes
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .charts import charts
from .collected import Collected
from .config import TopActivationsConfig
from .figures import columns, data, definitions, figures, lead, on_disk
from .kernels import OCTAVES, PER_OCTAVE, value_histogram
from .labels import label_columns, labels_on_disk
from .logit_lens import lens_of
from .panels import Panels
from .statistics import Statistics
from .summary import Summary
from .tables import tables

SILENT_SEED = np.uint64(0x51)

WINDOW_BYTES = 1 << 30
"""The activations around the examples are kept below this; beyond it they are read from codes on disk for the page."""


def windows_later(subject: Subject, config: TopActivationsConfig) -> bool:
    """Whether the activations around the examples of all latents would be too large for the pass."""
    kept = config.top + 1 + config.sample if subject.trained else 0
    return 4 * subject.n_latents * kept * (config.before + 1 + config.after) > WINDOW_BYTES


class TopActivationsReport(Report[TopActivationsConfig]):
    """Examples and their statistics."""

    config_class: ClassVar[type[ReportConfig]] = TopActivationsConfig
    title: ClassVar[str] = "Top activations"

    def __init__(self, config: TopActivationsConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        n = subject.n_latents
        # Panels show what is around an example, and the page has none of an untrained coder.
        window = (config.before, config.after) if subject.trained else None
        self.kept = KeptCodes(n, subject.scratch) if windows_later(subject, config) else None
        self.top = Keeper(n, config.top, distinct=True, context=config.before, window=window, codes=self.kept)
        self.apart = Keeper(n, 1, context=config.before, window=window, codes=self.kept)
        self.raw = Keeper(n, config.raw_top, context=config.before)
        self.sample = Keeper(n, config.sample, by="sample", context=config.before, window=window, codes=self.kept)
        self.histogram = np.zeros((n, OCTAVES * PER_OCTAVE), np.int64)
        self.fired = np.zeros(n, np.int64)
        self.fired_first = np.zeros(n, np.int64)
        self.fired_massive = np.zeros(n, np.int64)
        self.sum = np.zeros(n)
        self.rows = 0
        self.rows_first = 0
        self.rows_massive = 0
        self.silent: dict[int, NDArray[np.int32]] = {}
        # A row is drawn where the hash of its number is below this: about silent_rows of them, the same ones whichever
        # process reads their shard.
        share = min(1.0, config.silent_rows / max(1, subject.n_rows))
        self.silent_below = np.uint64(min(int(share * 2**64), 2**64 - 1))

    def update(self, batch: StreamBatch) -> None:
        codes, rows = batch.codes, batch.rows
        if self.kept is not None:
            self.kept.add(rows, codes)
        self.rows += int(rows.keep.sum())
        self.rows_first += int(rows.first.sum())
        starts = codes.by_latent.starts
        values = codes.latent_values
        self.fired += codes.fired
        self.sum += np.bincount(codes.latents, codes.values.astype(np.float64), len(self.sum))

        def count(first: int, stop: int) -> None:
            value_histogram(starts, values, self.histogram, first, stop)

        over_latents(count, codes.fired)
        massive = self.subject.massive_of(rows)
        self.top.add(codes, rows, only=rows.rest & ~massive)
        self.apart.add(codes, rows, only=rows.first | massive)
        self.raw.add(codes, rows)
        self.rows_massive += int(massive.sum())
        at_massive = np.repeat(massive, codes.l0)
        self.fired_massive += np.bincount(codes.latents[at_massive], minlength=len(self.fired))
        at_first = np.repeat(rows.first, codes.l0)
        self.fired_first += np.bincount(codes.latents[at_first], minlength=len(self.fired))
        self.sample.add(codes, rows, only=rows.rest)
        drawn = rows.rest & (mix(rows.row.astype(np.uint64) ^ SILENT_SEED) <= self.silent_below)
        for r in np.flatnonzero(drawn).tolist():
            self.silent[int(rows.start + r)] = codes.latents[codes.indptr[r] : codes.indptr[r + 1]].copy()

    def merge(self, other: Self) -> None:
        if self.kept is not None and other.kept is not None:
            self.kept.merge(other.kept)
        self.top.merge(other.top)
        self.apart.merge(other.apart)
        self.raw.merge(other.raw)
        self.sample.merge(other.sample)
        self.histogram += other.histogram
        self.fired += other.fired
        self.fired_first += other.fired_first
        self.fired_massive += other.fired_massive
        self.sum += other.sum
        self.rows += other.rows
        self.rows_first += other.rows_first
        self.rows_massive += other.rows_massive
        self.silent |= other.silent

    def finalise(self) -> ReportResult:
        config, subject, collected = self.config, self.subject, self._collected()
        s = Statistics.of(collected, subject, config)
        lens = lens_of(subject, config.lens) if config.lens and subject.role == "run" else None
        summary = Summary.of(collected, s, subject, config)
        return ReportResult(
            name="top_activations",
            title=self.title,
            lead=lead(s, subject.vocabulary.known),
            figures=figures(s, config),
            charts=charts(s, config),
            tables=tables(summary, config),
            columns=[*label_columns(subject.explanations, subject.n_latents), *columns(s, summary, config)],
            data=data(collected, s, summary) | {"text": subject.vocabulary.known, "logit_lens": lens is not None},
            panel=Panels(collected, s, lens, subject, config),
            tables_on_disk={"latents": on_disk(s, summary) | labels_on_disk(subject.explanations, subject.n_latents)},
            definitions=definitions(s, config),
        )

    def _collected(self) -> Collected:
        return Collected(
            top=self.top,
            apart=self.apart,
            raw=self.raw,
            sample=self.sample,
            histogram=self.histogram,
            fired=self.fired,
            fired_first=self.fired_first,
            fired_massive=self.fired_massive,
            sum=self.sum,
            rows=self.rows,
            rows_first=self.rows_first,
            rows_massive=self.rows_massive,
            silent=self.silent,
        )
