"""The analyze stage: open the runs, stream their caches once, finalise the reports, write them down."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from analyze.compare import CodeSample, compare
from analyze.config import AnalyzeConfig
from analyze.folder import check_folder, report_folder
from analyze.kernels import threads
from analyze.pairs import PairSums
from analyze.parts import Part, collect, other_processes
from analyze.reports import REPORTS, AnyReport, Subject
from analyze.result import ReportResult, number
from shared.cache import Cache, open_cache
from shared.cache.files import make_folder
from shared.coders import Coder, build_coder
from shared.console import Console, duration, size
from shared.errors import DataError, UsageError
from shared.registry import did_you_mean
from shared.runs import Run, open_run
from shared.text import Vocabulary

UNTRAINED = "untrained"
"""The control's name where there is one alone."""

PROBE_ROWS = 256
"""Rows on which two untrained coders must agree to be one control."""


@dataclass(frozen=True)
class Analysed:
    """One run (or control) with its results, by report.

    Attributes:
        facts: what else is known of it: architecture, sizes, training, its figures on held-out documents.
    """

    subject: Subject
    facts: dict[str, Any]
    results: dict[str, ReportResult]

    @property
    def summary(self) -> dict[str, Any]:
        """Headline figures by key; twins with position 0 as key_with_bos."""
        out: dict[str, Any] = {"name": self.subject.name, "role": self.subject.role}
        for result in self.results.values():
            for figure in result.figures:
                if figure.in_summary:
                    out[figure.key] = number(figure.value)
                    if figure.with_bos is not None:
                        out[f"{figure.key}_with_bos"] = number(figure.with_bos)
        return out


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
        from analyze.render.markdown import summary_table

        table = summary_table(self.runs + self.controls)
        said = [f"{name}: {lead}" for name, lead in self.leads]
        return "\n".join([*([table] if table else []), *said, f"report: {self.report} ({duration(self.seconds)})"])


def analyze(runs: Sequence[Path], config: AnalyzeConfig, console: Console | None = None) -> AnalyzeResult:
    """Every report on every run, side by side, from one pass over each cache.

    Raises:
        UsageError: no run was named, or the report's folder holds something that may not be replaced (check_folder).
        DataError: a run or cache is missing, unfinished, or they do not belong together.
    """
    from analyze.render import write_report
    from analyze.render.document import SCHEMA

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
    from analyze.render.markdown import SUMMARY

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


def _cache_path(run: Run, config: AnalyzeConfig) -> Path:
    if config.cache is not None:
        return config.cache
    known = run.final.get("cache")
    if not known:
        raise DataError(
            f"run {run.name} does not say which cache it was trained on", "pipeline analyze --set analyze.cache=PATH"
        )
    path = Path(known["path"])
    if not path.exists():
        raise DataError(
            f"the cache of run {run.name}, {path}, is not there",
            "pipeline harvest writes it again; --set analyze.cache=PATH if it was moved",
        )
    return path


def _cache_of(run: Run, config: AnalyzeConfig) -> tuple[Path, str | None]:
    """The cache of a run, and the identity under which it was trained on it, if the cache has grown since."""
    path = _cache_path(run, config)
    trained_on = run.final.get("cache", {}).get("identity")
    if config.cache is not None or trained_on not in open_cache(path).identities[:-1]:
        return path, None
    return path, trained_on


def subjects_of(path: Path, members: Sequence[tuple[str, Run]], config: AnalyzeConfig) -> list[Subject]:
    """The runs on one cache and their controls."""
    cache = open_cache(path, identity=_cache_of(members[0][1], config)[1])
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"analyze.device is {device}, and there is no CUDA device", "--set analyze.device=cpu")
    shards = choose_shards(cache, config.max_tokens)
    vocabulary = Vocabulary.of(cache)
    heldout = _heldout(members) if config.documents == "heldout" else None
    subjects = []
    for name, run in members:
        final = run.final
        _check(run, final, cache, given=config.cache is not None)
        frozen = "w_dec" in final.get("training", {}).get("freeze", ())
        coder = run.load_coder().to(device)
        subjects.append(
            Subject(
                name, "control" if frozen else "run", coder, cache, final["source"], final["target"], vocabulary,
                shards, device, config.seed, heldout, _trained_on(run, cache),
            )
        )  # fmt: skip
    if heldout is not None and not subjects[0].rest_rows.any():
        raise UsageError(
            f"no document of {path} is held out at data.heldout {heldout:g}"
            + (" in the shards that are looked at" if len(shards) < len(cache.shards) else "")
            + ", and analyze.documents is heldout",
            "--set analyze.documents=all",
        )
    if config.controls:
        # A control needs no control of its own, unless there is nothing else.
        subjects += _controls([subject for subject in subjects if subject.role == "run"] or subjects, members)
    return subjects


def _trained_on(run: Run, cache: Cache) -> Cache | None:
    """The cache that a run was trained on: the one under analysis, or another that is still there."""
    known = run.final.get("cache", {})
    if known.get("identity") == cache.identity:
        return cache
    if "path" not in known or not Path(known["path"]).exists():
        return None
    try:
        found = open_cache(Path(known["path"]), identity=known["identity"])
    except DataError:  # it was moved, or another cache stands there
        return None
    return found if found.identity == known["identity"] else None


def _check(run: Run, final: dict[str, Any], cache: Cache, given: bool) -> None:
    """The run must fit the cache."""
    for side, width in (("source", final["d_in"]), ("target", final["d_out"])):
        site = final.get(side)
        if site not in cache.sites:
            raise DataError(
                f"run {run.name} has the {side} {site}, and {cache.path} holds {', '.join(cache.sites)}",
                f"pipeline inspect {cache.path}",
            )
        if cache.sites[site].width != width:
            raise DataError(
                f"run {run.name}: its {side} {site} has width {width}, that of {cache.path} {cache.sites[site].width}",
                f"pipeline inspect {cache.path}",
            )
    trained_on = final.get("cache", {}).get("identity")
    if not given and trained_on != cache.identity:
        raise DataError(
            f"run {run.name} was trained on a cache with identity {str(trained_on)[:12]}…, and {cache.path} now is "
            f"{cache.identity[:12]}…",
            f"--set analyze.cache={cache.path} to analyze it on that cache all the same",
        )


def _heldout(members: Sequence[tuple[str, Run]]) -> float:
    """The share of documents that the runs held out."""
    shares = {name: float(run.final.get("training", {}).get("data", {}).get("heldout", 0.0)) for name, run in members}
    for name, share in shares.items():
        if not share:
            raise UsageError(
                f"run {name} trained on every document, and analyze.documents is heldout",
                "--set analyze.documents=all",
            )
    if len(set(shares.values())) > 1:
        raise UsageError(
            f"the runs hold out different documents: {', '.join(f'{n} {s:g}' for n, s in shares.items())}",
            "analyze them apart, or --set analyze.documents=all",
        )
    return next(iter(shares.values()))


def choose_shards(cache: Cache, max_tokens: int | None) -> tuple[int, ...]:
    """All shards, or as many as hold max_tokens rows, spread evenly over the cache."""
    shards = cache.shards
    if max_tokens is None or max_tokens >= cache.n_rows:
        return tuple(shards)
    n = max(1, round(max_tokens / cache.layout.shard_rows))
    return tuple(shards[k * len(shards) // n] for k in range(min(n, len(shards))))


def _controls(subjects: Sequence[Subject], members: Sequence[tuple[str, Run]]) -> list[Subject]:
    """Each run's coder as it was before training; one control for runs that began alike."""
    runs = dict(members)
    controls: list[tuple[Subject, list[str]]] = []
    for subject in subjects:
        fresh = replace(subject, coder=untrained(subject, runs[subject.name].final), role="control")
        for other, names in controls:
            if _agree(fresh, other):
                names.append(subject.name)
                break
        else:
            controls.append((fresh, [subject.name]))
    return [replace(control, name=f"{UNTRAINED} ({', '.join(names)})") for control, names in controls]


def untrained(subject: Subject, final: dict[str, Any]) -> Coder:
    """The run's coder before its first step: the same settings, seed and normalisation."""
    coder = subject.coder
    generator = torch.Generator().manual_seed(int(final.get("training", {}).get("seed", 0)))
    fresh = build_coder(coder.config, coder.d_in, coder.d_out, tied=coder.tied, generator=generator)
    if "w_dec" in final.get("training", {}).get("freeze", ()):  # what never learned is what it began with
        with torch.no_grad():
            fresh.w_dec.copy_(coder.w_dec.cpu())
    with torch.no_grad():
        for name in ("input_mean", "input_scale", "target_mean", "target_scale"):
            getattr(fresh, name).copy_(getattr(coder, name))
    return fresh.to(subject.device).eval()


def _agree(a: Subject, b: Subject) -> bool:
    """Whether two coders say the same of the same rows."""
    if (a.source, a.target, a.n_latents) != (b.source, b.target, b.n_latents):
        return False
    shard = a.shards[0]
    x = a.cache.chunk(a.source, shard)[:PROBE_ROWS].to(a.device)
    with torch.inference_mode():
        ours, theirs = a.coder.encode(x), b.coder.encode(x)
        return torch.equal(ours.dense(), theirs.dense()) and torch.equal(
            a.coder.decode(ours, x), b.coder.decode(theirs, x)
        )


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


def _rows_trained_on(cache: Cache, run: Run) -> str | None:
    """The identity of the cache that a run was trained on; of its first one with the same rows, if it grew by sites."""
    identity = run.final.get("cache", {}).get("identity")
    n_seq = {one.identity: one.n_seq for one in cache.parts.generations}
    return next((one for one, n in n_seq.items() if n == n_seq.get(identity)), identity)


def _facts(subject: Subject, run: Run | None) -> dict[str, Any]:
    coder = subject.coder
    facts: dict[str, Any] = {
        "architecture": coder.config.architecture,
        "kind": "transcoder" if coder.is_transcoder else "SAE",
        "latents": coder.n_latents,
        "source": subject.source,
        "target": subject.target,
        "cache": str(subject.cache.path),
        "cache_identity": subject.cache.identity,
    }
    if run is None:
        return {**facts, "trained": False}
    summary = run.summary
    keys = ("steps", "tokens", "seconds", "fvu", "fvu_with_bos", "l0", "evaluated_on")
    return {
        **facts,
        "trained": True,
        "settings": run.final.get("training", {}),
        "trained_on": _rows_trained_on(subject.cache, run),
        "path": str(run.path),
        "training": {key: summary[key] for key in keys if key in summary},
    }
