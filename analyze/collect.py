"""The one pass, whole or in parts: collectors fed with some shards of a cache, and merged with those of the others.

Merging is exact (counts and lists to the bit, float64 sums up to the order of addition), so that several processes
share a cache: each opens it, streams shards of its own, and hands back what its collectors hold.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..shared.codes.parallel import threads
from .compare.runs import CodeSample, sample_rows
from .config import AnalyzeConfig
from .reports import REPORTS, AnyReport, Subject
from .stream.batches import stream


@dataclass(frozen=True)
class Part:
    """What was collected from some shards of one cache.

    Attributes:
        reports: for each subject, its collectors by name.
        samples: by subject, the codes that runs are compared on; empty where nothing is compared.
        rows: how many rows were looked at: all that were streamed, padding included, or the ones asked for.
    """

    reports: list[dict[str, AnyReport]]
    samples: dict[str, CodeSample]
    rows: int

    def merge(self, other: Part) -> Part:
        """As if one had seen the shards of both; this part's collectors take the other's in."""
        for mine, theirs in zip(self.reports, other.reports, strict=True):
            for name, report in mine.items():
                report.merge(theirs[name])
        for name, sample in self.samples.items():
            sample.merge(other.samples[name])
        return Part(self.reports, self.samples, self.rows + other.rows)


def collect(
    subjects: Sequence[Subject],
    config: AnalyzeConfig,
    shards: Sequence[int],
    compare: bool = False,
    advance: Callable[[int], object] = lambda rows: None,
) -> Part:
    """Stream some shards through every coder into fresh collectors.

    Args:
        compare: also draw the codes that runs are compared on.
        advance: told of the rows of each shard once it is done (those that `only` asks for).
    """
    reports = [
        {
            name: REPORTS[settings.kind](settings, subject)
            for name, settings in config.reports.items()
            if subject.role == "run" or REPORTS[settings.kind].of_controls
        }
        for subject in subjects
    ]
    samples = {s.name: CodeSample(s, sample_rows(subjects)) for s in subjects} if compare else {}
    sources = [
        subject.coder_sites(any(report.reconstructs for report in own.values()))
        for subject, own in zip(subjects, reports, strict=True)
    ]
    first, rows = subjects[0], 0
    for batches in stream(first.cache, sources, shards, first.device, first.only):
        for subject, batch, own in zip(subjects, batches, reports, strict=True):
            for report in own.values():
                report.update(batch)
            if subject.name in samples:
                samples[subject.name].update(batch)
        counted = len(batches[0].rows) if first.only is None else int(batches[0].rows.keep.sum())
        rows += counted
        advance(counted)
    return Part(reports, samples, rows)


@contextmanager
def other_processes(
    cache: Path, members: Sequence[tuple[str, Path]], config: AnalyzeConfig, shards: Sequence[int], compare: bool
) -> Iterator[list[Future[Part]]]:
    """Processes 1 … of config.processes at work on every so-manyeth shard; this one takes shards[:: processes].

    Args:
        members: (name, run) of every run on the cache.
    """
    n = min(config.processes, len(shards))
    if n < 2:
        yield []
        return
    with ProcessPoolExecutor(n - 1, multiprocessing.get_context("spawn")) as pool:
        share = max(1, threads() // n)
        yield [pool.submit(_part, cache, members, config, shards[p::n], compare, share) for p in range(1, n)]


def _part(
    cache: Path,
    members: Sequence[tuple[str, Path]],
    config: AnalyzeConfig,
    shards: Sequence[int],
    compare: bool,
    threads: int,
) -> Part:
    """One process's part, from nothing but paths and settings."""
    from ..shared.runs.folder import open_run
    from .subjects import subjects_of

    torch.set_num_threads(threads)
    return collect(
        subjects_of(cache, [(name, open_run(run)) for name, run in members], config), config, shards, compare
    )
