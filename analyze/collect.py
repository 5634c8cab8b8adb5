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
from itertools import product
from pathlib import Path

import torch

from ..shared.codes.parallel import threads
from ..shared.console import Console, size
from ..shared.errors import UsageError
from ..shared.runs.folder import Run, open_run
from .compare.sample import SampledCodes, sample_rows
from .config import AnalyzeConfig
from .reports import REPORTS, AnyReport
from .reports.correlation import kept_pairs
from .reports.correlation.config import CorrelationConfig
from .reports.correlation.kept_pairs import fits
from .reports.correlation.pair_sums import PairSums
from .reports.position.config import PositionConfig
from .reports.position.counts import counted_later
from .reports.top_activations.config import TopActivationsConfig
from .reports.top_activations.report import windows_later
from .stream import kept_codes
from .stream.batches import stream
from .subject.subject import Subject
from .subjects import subjects_of


@dataclass(frozen=True)
class Part:
    """What was collected from some shards of one cache.

    Attributes:
        reports: for each subject, its collectors by name.
        samples: by subject, the codes that runs are compared on; empty where nothing is compared.
        rows: rows under analysis: all that were streamed, padding included, or the held-out ones among them.
    """

    reports: list[dict[str, AnyReport]]
    samples: dict[str, SampledCodes]
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
    """Stream some shards through every coder into fresh collectors, in the order of REPORTS.

    Args:
        compare: also draw the codes that runs are compared on.
        advance: called with the number of rows under analysis of each shard, once it is done.
    """
    place = {kind: place for place, kind in enumerate(REPORTS)}
    wanted = sorted(config.reports.items(), key=lambda item: place[item[1].kind])
    reports = [
        {
            name: REPORTS[settings.kind](settings, subject)
            for name, settings in wanted
            if (subject.role == "run" or REPORTS[settings.kind].of_controls)
            and REPORTS[settings.kind].lacks(subject) is None
        }
        for subject in subjects
    ]
    samples = {s.name: SampledCodes(s, sample_rows(subjects)) for s in subjects} if compare else {}
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


def collect_all(
    subjects: Sequence[Subject],
    members: Sequence[tuple[str, Run]],
    config: AnalyzeConfig,
    console: Console,
    compare: bool,
) -> Part:
    """One pass over a cache: every report of every subject, in as many processes as the settings say.

    Args:
        members: the runs on the cache, by name.

    Raises:
        UsageError: several processes on a device that is not the CPU.
    """
    first = subjects[0]
    _say_size(subjects, config, console)
    if config.processes > 1 and first.device != "cpu":
        raise UsageError(
            f"analyze.processes shares the pass between CPU processes, but the device is {first.device}",
            "--set analyze.processes=1",
        )
    label = f"analyze {' '.join(s.name for s in subjects if s.role == 'run') or first.name}"
    runs = [(name, run.path) for name, run in members]
    with (
        console.progress(first.n_rows, "tokens", label) as progress,
        other_processes(first.cache.path, runs, config, first.shards, compare, first.scratch) as others,
    ):
        whole = collect(subjects, config, first.shards[:: 1 + len(others)], compare, progress.advance)
        for other in others:
            part = other.result()
            whole = whole.merge(part)
            progress.advance(part.rows)
    return whole


def _say_size(subjects: Sequence[Subject], config: AnalyzeConfig, console: Console) -> None:
    """What counts of pairs and positions need of memory and disk, where that is much."""
    pair_sums, kept = 0, {subject.name: 0 for subject in subjects}
    for settings, subject in product(config.reports.values(), subjects):
        if isinstance(settings, CorrelationConfig):
            if fits(subject.n_latents, settings.triangle_gb):
                pair_sums += PairSums.bytes_needed(subject.n_latents)
            else:
                kept[subject.name] += kept_pairs.ENTRY_BYTES
        elif isinstance(settings, PositionConfig):
            kept[subject.name] += kept_codes.ENTRY_BYTES * counted_later(subject, settings)
        elif isinstance(settings, TopActivationsConfig):
            kept[subject.name] += kept_codes.ENTRY_BYTES * windows_later(subject, settings)
    if pair_sums * config.processes > 1 << 28:
        console.info(f"exact correlation holds {size(pair_sums * config.processes)} of pair sums")
    if wide := sum(entry > 0 for entry in kept.values()):
        console.info(
            f"the codes of {wide} wide coders are kept in {subjects[0].scratch}: "
            f"up to {max(kept.values())} bytes for each active code, removed at the end"
        )


@contextmanager
def other_processes(
    cache: Path,
    members: Sequence[tuple[str, Path]],
    config: AnalyzeConfig,
    shards: Sequence[int],
    compare: bool,
    scratch: Path,
) -> Iterator[list[Future[Part]]]:
    """The other processes at work: of n = config.processes, process p takes shards[p::n], this one shards[0::n].

    Args:
        members: (name, run) of every run on the cache. scratch: folder of temporary files, which all of them share.
    """
    n = min(config.processes, len(shards))
    if n < 2:
        yield []
        return
    with ProcessPoolExecutor(n - 1, multiprocessing.get_context("spawn")) as pool:
        share = max(1, threads() // n)
        yield [pool.submit(_part, cache, members, config, shards[p::n], compare, scratch, share) for p in range(1, n)]


def _part(
    cache: Path,
    members: Sequence[tuple[str, Path]],
    config: AnalyzeConfig,
    shards: Sequence[int],
    compare: bool,
    scratch: Path,
    threads: int,
) -> Part:
    """The part of one process, from paths and settings alone."""
    torch.set_num_threads(threads)
    runs = [(name, open_run(run)) for name, run in members]
    return collect(subjects_of(cache, runs, config, scratch), config, shards, compare)
