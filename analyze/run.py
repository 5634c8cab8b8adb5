"""The analyze stage: open the runs, stream their caches once, finalise the reports, write them to files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from ..shared.cache import Cache
from ..shared.cache.files import make_folder
from ..shared.codes.parallel import threads
from ..shared.config.registry import did_you_mean
from ..shared.console import Console, duration
from ..shared.errors import UsageError
from ..shared.saved_report import SCHEMA
from .collect import collect_all
from .compare.runs import compare
from .compare.sample import SampledCodes
from .config import AnalyzeConfig
from .render import write_report
from .render.folder import check_folder, report_folder, standing
from .render.terminal import headlines
from .reports import REPORTS, AnyReport
from .result import Figure, ReportResult
from .subject.analysed import Analysed
from .subject.subject import Subject
from .subjects import UNTRAINED, by_cache, facts_of, named_runs, subjects_of


@dataclass(frozen=True)
class AnalyzeResult:
    """Where the report lies, and every run's headline figures.

    Attributes:
        report: index.html.
        runs: one summary (`Analysed.summary`) per run, in the order given. controls: the same of the untrained coders.
        figures: the declared figures of each run and control, by its name and the figure's key.
        comparison: groups of seeds, figures over them, likeness of pairs; None for one run.
        headlines: the table for a terminal.
        rows: rows of the caches under analysis.
    """

    report: Path
    runs: list[dict[str, Any]]
    controls: list[dict[str, Any]]
    figures: dict[str, dict[str, Figure]]
    comparison: dict[str, Any] | None
    headlines: str
    rows: int
    seconds: float

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
        return f"{self.headlines}\nreport: {self.report} ({duration(self.seconds)})"


def analyze(paths: Sequence[Path], config: AnalyzeConfig, console: Console | None = None) -> AnalyzeResult:
    """Every report on every run, side by side, from one pass over each cache.

    Args:
        paths: folders of finished runs.

    Raises:
        UsageError: no run was given, or the report's folder holds something that may not be replaced (check_folder).
        DataError: a run or cache is missing, unfinished, or they do not belong together.
    """
    console = console or Console(quiet=True)
    started = time.perf_counter()
    if not paths:
        raise UsageError("no run to analyze", "pipeline status   (lists what exists; pipeline train makes a run)")
    runs = named_runs(paths)
    check_baseline(config.baseline, list(runs))
    folder = report_folder(config, list(runs))
    check_folder(folder, SCHEMA, config, [run.path for run in runs.values()])
    analysed: list[Analysed] = []
    samples: dict[str, SampledCodes] = {}
    rows = 0
    with scratch_folder(folder) as scratch:
        for cache, members in by_cache(runs, config):
            subjects = subjects_of(cache, members, config, scratch)
            make_folder(
                folder.parent, "analyze.out"
            )  # once nothing can be refused any more, and ahead of the long pass
            possible = reports_on(subjects[0].cache, config, console)
            refuse_meaningless(subjects, possible, console)
            part = collect_all(subjects, members, possible, console, config.compare and len(runs) > 1)
            finished = _finished(part.reports, console)
            facts = [facts_of(subject, dict(members).get(subject.name)) for subject in subjects]
            analysed += map(Analysed, subjects, facts, finished)
            samples |= part.samples
            rows += subjects[0].n_rows
        _name_only_control(analysed, samples)
        order = {name: place for place, name in enumerate(runs)}
        analysed.sort(key=lambda one: (order.get(one.subject.name, len(order)), one.subject.name))
        comparison = compare(analysed, samples, config.baseline)
        index = write_report(folder, analysed, comparison, config, console)
    return AnalyzeResult(
        report=index,
        runs=[one.summary for one in analysed if one.subject.name in runs],
        controls=[one.summary for one in analysed if one.subject.name not in runs],
        figures={one.subject.name: one.figures for one in analysed},
        comparison=None if comparison is None else comparison.document["data"],
        headlines=headlines(analysed, config),
        rows=rows,
        seconds=time.perf_counter() - started,
    )


@contextmanager
def scratch_folder(report: Path) -> Iterator[Path]:
    """A hidden folder beside a report, for files that are needed only during the analysis (made when one is).

    What an analysis that was killed left there is removed first.
    """
    folder = report.parent / f".{report.name}.codes"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def standing_report(paths: Sequence[Path], config: AnalyzeConfig) -> dict[str, Any] | None:
    """The --json document of :func:`analyze` if its report exists and would be the same; else None."""
    runs = named_runs(paths)
    folder = report_folder(config, list(runs))
    found = standing(folder, SCHEMA, config, list(runs.values()))
    if found is None:
        return None
    summaries = {name: [one["summary"] for one in found["runs"] if one["trained"] == trained]
                 for name, trained in (("runs", True), ("controls", False))}  # fmt: skip
    compared = found["comparison"]
    return {
        "report": str(folder / "index.html"),
        **summaries,
        "comparison": None if compared is None else compared["data"],
        "rows": sum(cache["rows_analysed"] for cache in found["caches"]),
        "seconds": 0.0,
    }


def reports_on(cache: Cache, config: AnalyzeConfig, console: Console) -> AnalyzeConfig:
    """The settings with the reports that a cache allows: one without tokens, which was imported, says which it lacks.

    Raises:
        UsageError: none is left.
    """
    lacking = [] if cache.has_tokens else [name for name, one in config.reports.items() if one.needs_tokens]
    if not lacking:
        return config
    kept = {name: one for name, one in config.reports.items() if name not in lacking}
    why = f"{', '.join(lacking)}: needs tokens, and {cache.path} was imported without any"
    if not kept:
        raise UsageError(why, "import it again with its token ids, or --only correlation")
    console.warn(f"not made: {why}")
    return replace(config, reports=kept)


def refuse_meaningless(subjects: Sequence[Subject], config: AnalyzeConfig, console: Console) -> None:
    """Names the reports that have no meaning for a run, which are left out.

    Raises:
        UsageError: none is left for a run.
    """
    for subject in (one for one in subjects if one.role == "run"):
        reasons = {
            name: reason
            for name, one in config.reports.items()
            if (reason := REPORTS[one.kind].lacks(subject)) is not None
        }
        if len(reasons) == len(config.reports):
            name, reason = next(iter(reasons.items()))
            raise UsageError(f"{subject.name}: no {name} report: {reason}", "--only global, or another report")
        for name, reason in reasons.items():
            if not REPORTS[config.reports[name].kind].about_some:
                console.warn(f"{subject.name}: not made: {name}: {reason}")


def check_baseline(baseline: str | None, names: Sequence[str]) -> None:
    """Raises UsageError where `analyze.baseline` names none of the runs."""
    if baseline is not None and baseline not in names:
        raise UsageError(
            f"analyze.baseline is {baseline!r}, but the runs are {', '.join(names)}{did_you_mean(baseline, names)}",
            "--set analyze.baseline=null   (for the first one)",
        )


def _finished(collectors: list[dict[str, AnyReport]], console: Console) -> list[dict[str, ReportResult]]:
    """The results of each subject's collectors, by name. Absorption or the model's loss may take minutes.

    The threads are daemons, so that an interrupt ends the command at once; ThreadPoolExecutor would wait for them.
    """
    results: list[dict[str, ReportResult]] = [{} for _ in collectors]
    with (
        console.progress(sum(map(len, collectors)), "reports", "finish") as progress,
        ThreadPool(threads()) as pool,
    ):

        def finish(part: list[tuple[int, str, AnyReport]]) -> None:
            reports = [report for _, _, report in part]
            done = reports[0].finalise_all(reports) if reports[0].together else (one.finalise() for one in reports)
            for (place, name, _), result in zip(part, done, strict=True):
                results[place][name] = result
                progress.advance()

        pool.map(finish, _parts_to_finish(collectors), chunksize=1)
    return [{name: done[name] for name in own} for own, done in zip(collectors, results, strict=True)]


def _parts_to_finish(collectors: list[dict[str, AnyReport]]) -> list[list[tuple[int, str, AnyReport]]]:
    """(subject's place, name, collector) in groups that one thread finishes: the long ones that subjects share first,
    then each subject's own."""
    shared: dict[str, list[tuple[int, str, AnyReport]]] = {}
    own: dict[int, list[tuple[int, str, AnyReport]]] = {}
    for place, reports in enumerate(collectors):
        for name, report in reports.items():
            if report.together:
                shared.setdefault(name, []).append((place, name, report))
            else:
                own.setdefault(place, []).append((place, name, report))
    return [*shared.values(), *own.values()]


def _name_only_control(analysed: list[Analysed], samples: dict[str, SampledCodes]) -> None:
    """The name of the only control need not say whose it is."""
    places = [place for place, one in enumerate(analysed) if not one.facts["trained"]]
    if len(places) == 1:
        one = analysed[places[0]]
        if one.subject.name in samples:
            samples[UNTRAINED] = samples.pop(one.subject.name)
        analysed[places[0]] = replace(one, subject=replace(one.subject, name=UNTRAINED))
