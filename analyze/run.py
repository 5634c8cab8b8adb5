"""The analyze stage: open the runs, stream their caches once, finalise the reports, write them down."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..shared.cache.files import make_folder
from ..shared.codes.parallel import threads
from ..shared.config.registry import did_you_mean
from ..shared.console import Console, duration, size
from ..shared.errors import UsageError
from ..shared.runs.folder import Run, open_run
from .collect import Part, collect, other_processes
from .compare.runs import CodeSample, compare
from .config import AnalyzeConfig
from .render.folder import check_folder, report_folder
from .reports import REPORTS, AnyReport, Subject
from .reports.correlation.pair_sums import PairSums
from .result import ReportResult
from .subject.analysed import Analysed
from .subjects import UNTRAINED, _cache_of, _facts, subjects_of


@dataclass(frozen=True)
class AnalyzeResult:
    """Where the report lies, and every run's headline figures.

    Attributes:
        report: index.html.
        runs: one summary per run, in the order given. controls: the same for what stands beside them.
        comparison: groups of seeds, figures over them, likeness of pairs; None for one run.
        leads: (run, what a report says of it) for reports on request that have no column in the table of headlines.
    """

    report: Path
    runs: list[dict[str, Any]]
    controls: list[dict[str, Any]]
    comparison: dict[str, Any] | None
    rows: int
    seconds: float
    leads: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The --json document."""
        return {
            "report": str(self.report),
            "runs": self.runs,
            "controls": self.controls,
            "comparison": self.comparison,
            "rows": self.rows,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        from .render.markdown import summary_table

        table = summary_table(self.runs + self.controls)
        said = [f"{name}: {lead}" for name, lead in self.leads]
        return "\n".join([*([table] if table else []), *said, f"report: {self.report} ({duration(self.seconds)})"])


def analyze(runs: Sequence[Path], config: AnalyzeConfig, console: Console | None = None) -> AnalyzeResult:
    """Every report on every run, side by side, from one pass over each cache.

    Raises:
        UsageError: no run was named, or the report's folder holds something that may not be replaced (check_folder).
        DataError: a run or cache is missing, unfinished, or they do not belong together.
    """
    from .render import write_report
    from .render.document import SCHEMA

    console = console or Console(quiet=True)
    started = time.perf_counter()
    if not runs:
        raise UsageError("no run to analyze", "pipeline train writes one; pipeline status lists what exists")
    opened = [open_run(path) for path in runs]
    names = _unique_names(opened)
    if config.baseline is not None and config.baseline not in names:
        raise UsageError(
            f"analyze.baseline is {config.baseline!r}, and the runs are {', '.join(names)}"
            f"{did_you_mean(config.baseline, names)}",
            "--set analyze.baseline=null for the first one",
        )
    folder = report_folder(config, names)
    check_folder(folder, SCHEMA, config, [run.path for run in opened])
    samples: dict[str, CodeSample] = {}
    by_cache: dict[tuple[Path, str | None], list[tuple[str, Run]]] = {}
    for name, run in zip(names, opened, strict=True):
        by_cache.setdefault(_cache_of(run, config), []).append((name, run))
    analysed: list[Analysed] = []
    rows = 0
    for (path, _), members in by_cache.items():
        subjects = subjects_of(path, members, config)
        make_folder(folder.parent, "analyze.out")  # before the pass, and not for what is refused
        part = _collect(subjects, members, config, console, config.compare and len(runs) > 1)
        samples |= part.samples
        rows += subjects[0].n_rows
        console.info(f"finishing {', '.join(subject.name for subject in subjects)}")
        with ThreadPoolExecutor(threads(), "finish") as pool:
            finished = list(pool.map(_finalised, part.reports))
        for subject, results in zip(subjects, finished, strict=True):
            analysed.append(Analysed(subject, _facts(subject, dict(members).get(subject.name)), results))
    _shorten(analysed, samples)
    order = {name: place for place, name in enumerate(names)}
    analysed.sort(key=lambda a: (order.get(a.subject.name, len(order)), a.subject.name))
    comparison = compare(analysed, samples, config.baseline)
    index = write_report(folder, analysed, comparison, config, console)
    return AnalyzeResult(
        index,
        [a.summary for a in analysed if a.subject.name in order],
        [a.summary for a in analysed if a.subject.name not in order],
        None if comparison is None else comparison.document["data"],
        rows,
        time.perf_counter() - started,
        _leads(analysed, config),
    )


def _leads(analysed: Sequence[Analysed], config: AnalyzeConfig) -> list[tuple[str, str]]:
    """What the reports say that the table of headlines does not show: those on request, or all where it shows none."""
    from .render.markdown import SUMMARY

    columns = {key for key, _, _ in SUMMARY}
    figures: dict[str, set[str]] = {}
    for one in analysed:
        for name, result in one.results.items():
            figures.setdefault(name, set()).update(figure.key for figure in result.figures)
    untold = [name for name, keys in figures.items() if not keys & columns]
    shown = [n for n in untold if len(untold) == len(figures) or not REPORTS[config.reports[n].kind].by_default]
    return [(one.subject.name, one.results[name].lead) for one in analysed for name in shown if name in one.results]


def _shorten(analysed: list[Analysed], samples: dict[str, CodeSample]) -> None:
    """A control that is the only one needs no word on whose it is."""
    places = [place for place, one in enumerate(analysed) if not one.facts["trained"]]
    if len(places) == 1:
        one = analysed[places[0]]
        if one.subject.name in samples:
            samples[UNTRAINED] = samples.pop(one.subject.name)
        analysed[places[0]] = replace(one, subject=replace(one.subject, name=UNTRAINED))


def _finalised(collectors: dict[str, AnyReport]) -> dict[str, ReportResult]:
    return {name: report.finalise() for name, report in collectors.items()}


def _unique_names(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError("a run is named twice", "name each run once")
    if len(set(names)) < len(names):
        names = [f"{run.path.resolve().parent.name}/{run.name}" for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    return names


def _collect(
    subjects: Sequence[Subject],
    members: Sequence[tuple[str, Run]],
    config: AnalyzeConfig,
    console: Console,
    compare: bool,
) -> Part:
    """One pass: every report of every subject, fed, in as many processes as the settings say."""
    first = subjects[0]
    if any(settings.kind == "correlation" for settings in config.reports.values()):
        memory = sum(PairSums.bytes_needed(subject.n_latents) for subject in subjects) * config.processes
        if memory > 1 << 28:
            console.info(f"exact correlation of {len(subjects)} coders holds {size(memory)} of pair sums")
    if config.processes > 1 and first.device != "cpu":
        raise UsageError(
            f"analyze.processes share the pass on CPUs, not on {first.device}", "--set analyze.processes=1"
        )
    label = f"analyze {' '.join(s.name for s in subjects if s.role == 'run') or first.name}"
    runs = [(name, run.path) for name, run in members]
    with (
        console.progress(first.n_rows, "tokens", label) as progress,
        other_processes(first.cache.path, runs, config, first.shards, compare) as others,
    ):
        whole = collect(subjects, config, first.shards[:: 1 + len(others)], compare, progress.advance)
        for other in others:
            part = other.result()
            whole = whole.merge(part)
            progress.advance(part.rows)
    return whole
