"""The training loop: load, step, log, save; then evaluate and finish."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..shared.cache.batch import Batch
from ..shared.coders import Coder
from ..shared.codes.positions import bos_enrichment
from ..shared.console import Console
from ..shared.errors import PipelineError
from ..shared.interrupt import Interrupt, interruptible
from ..shared.runs.folder import Run
from .config import TrainConfig
from .data.stream import Stream, open_stream
from .evaluate import Evaluation, evaluate, evaluation_rows
from .fits import refuse_too_large
from .plan import Group, TrainPlan, plan
from .runs.saving import all_written, writing
from .runs.session import Session, begin, open_runs, summarise, trackers_closed
from .runs.summary import RunSummary, runs_text
from .samplers import build_sampler
from .step.autograd import train_step
from .step.reseed import reseed

__all__ = ["RunSummary", "TrainPlan", "plan", "runs_text", "train"]

SHOWN = {"loss": "loss", "fvu": "batch FVU", "l0": "L0"}
"""Figure of a line of metrics → its name beside the progress."""


def train(configs: Sequence[TrainConfig], console: Console | None = None, resume: bool = False) -> list[RunSummary]:
    """Train one coder per config; configs with the same cache, data settings and sampler share one read of the data.

    Args:
        resume: resume runs that exist (a finished one stays as it is); otherwise an existing run is refused.

    Raises:
        UsageError, DataError: refused before anything was written.
        PipelineError: the memory does not suffice (nothing was written); a loss was not finite:
            every other run was saved at its current step.
        KeyboardInterrupt: SIGINT or SIGTERM; every run was saved at its current step.
    """
    console = console or Console(quiet=True)
    groups = plan(configs).groups
    refuse_too_large(groups)
    runs = open_runs(groups, resume)
    with contextlib.ExitStack() as stack:
        for run in runs.values():
            stack.enter_context(run.lock())
        interrupt = stack.enter_context(interruptible())
        for group in groups:
            train_group(group, runs, console, interrupt)
    return [summarise(runs[config.path], config) for config in configs]


def train_group(group: Group, runs: Mapping[Path, Run], console: Console, interrupt: Interrupt) -> None:
    """Train the runs of one group side by side."""
    open_configs = [config for config in group.configs if not runs[config.path].complete]
    if not open_configs:
        return
    with writing() as thread:
        sessions = [begin(group, config, runs[config.path], thread) for config in open_configs]
        with all_written([session.saving for session in sessions], console):
            _train(sessions, group, console, interrupt)


def _train(sessions: Sequence[Session], group: Group, console: Console, interrupt: Interrupt) -> None:
    """From the step of the run that is furthest behind to the end of all."""
    behind = min(sessions, key=lambda session: session.step)  # a killed process may have saved one run and not the next
    data, sampler = group.configs[0].data, build_sampler(group.configs[0].sampler)
    label = f"train {sessions[0].run.name}" if len(sessions) == 1 else "train"
    with (
        trackers_closed(sessions),
        open_stream(group.cache, group.sites, data, sampler, behind.position, group.device) as stream,
        console.progress(group.steps * data.batch_size, "tokens", label, behind.step * data.batch_size) as progress,
    ):
        for note in group.notes:
            console.warn(note)
        _evaluate_untrained(sessions, group, stream)
        for step, rows in enumerate(stream, behind.step + 1):
            failures: dict[int, PipelineError] = {}
            for session in sessions:
                if session.step < step:
                    try:
                        session.saving.check()
                        line = _step(session, rows, stream)
                        progress.advance(0, None if len(sessions) == 1 else session.run.name, **_shown(line))
                    except PipelineError as failure:
                        failures[id(session)] = failure
            progress.advance(len(rows))
            _save(sessions, stream, failures, everyone=interrupt.requested or bool(failures))
            _report(sessions, group, stream)
            if failures:
                raise next(iter(failures.values()))
            if interrupt.requested:
                for session in sessions:
                    session.saving.wait()
                saved = ", ".join(str(session.run.path) for session in sessions)
                raise KeyboardInterrupt(f"{saved} saved at step {step:,} of {group.steps:,}")
        averages = {id(session): coder for session in sessions if (coder := session.trainee.averaged()) is not None}
        averaging = [session for session in sessions if id(session) in averages]
        measured = dict(zip(map(id, averaging), _evaluate(averaging, group, stream, averages), strict=True))
        for session, evaluation in zip(sessions, _evaluate(sessions, group, stream), strict=True):
            coder = averages.get(id(session))
            session.finish(evaluation, group, None if coder is None else (coder, measured[id(session)]))


def _step(session: Session, rows: Batch, stream: Stream) -> dict[str, Any]:
    """One step of one run; its line of metrics, if the step is logged, otherwise {}."""
    due = session.log_due
    with session.trainee.clock.running():
        result = train_step(session.trainee, rows, measure=due)
        reseed(session.trainee, rows)
        if stream.sampler.config.follows_training:
            stream.sampler.observe(bos_enrichment(result.codes(), rows.position))
        session.look(result, rows)
    return session.log(result, stream) if due else {}


def _save(sessions: Sequence[Session], stream: Stream, failures: dict[int, PipelineError], everyone: bool) -> None:
    """Save those runs that are due, or all; where one cannot be saved, all others, since training stops.

    Args:
        failures: id of a session → why it goes no further; those that cannot be saved are added.
    """
    due = [session for session in sessions if id(session) not in failures and (everyone or session.checkpoint_due)]
    if due:
        stream.check()
    before = len(failures)
    for session in due:
        try:
            session.save(stream)
        except PipelineError as failure:
            failures[id(session)] = failure
    if len(failures) > before and not everyone:
        _save(sessions, stream, failures, everyone=True)


def _shown(line: Mapping[str, Any]) -> dict[str, object]:
    """The figures that progress shows of a run: of one run beside the rate, of several in a table."""
    return {name: line[key] for key, name in SHOWN.items() if line.get(key) is not None}


def _evaluate(
    sessions: Sequence[Session], group: Group, stream: Stream, others: Mapping[int, Coder] | None = None
) -> list[Evaluation]:
    """Figures of every coder, on the rows it would get alone; coders with the same `eval_rows` share one read.

    Args:
        others: id of a session → another coder to evaluate in place of its own.
    """
    found: dict[int, Evaluation] = {}
    for limit in sorted({session.trainee.config.eval_rows for session in sessions}):
        alike = [session for session in sessions if session.trainee.config.eval_rows == limit]
        rows = evaluation_rows(stream.split, limit)
        chosen = [(others or {}).get(id(s), s.trainee.coder) for s in alike]
        sites = [(s.trainee.config.source, s.trainee.config.target_site) for s in alike]
        coders = [(coder, *pair) for coder, pair in zip(chosen, sites, strict=True)]
        found |= zip(map(id, alike), evaluate(coders, group.cache, rows, group.device), strict=True)
    return [found[id(session)] for session in sessions]


def _report(sessions: Sequence[Session], group: Group, stream: Stream) -> None:
    """The short reports of those runs whose checkpoint comes with one."""
    due = [session for session in sessions if session.report_due and session.saved_step == session.step]
    if due:
        for session, evaluation in zip(due, _evaluate(due, group, stream), strict=True):
            session.report_progress(evaluation, group)


def _evaluate_untrained(sessions: Sequence[Session], group: Group, stream: Stream) -> None:
    """The control that every result is compared with: the same coder before its first step."""
    fresh = [session for session in sessions if session.step == 0]
    if fresh:
        for session, evaluation in zip(fresh, _evaluate(fresh, group, stream), strict=True):
            session.trainee.untrained = evaluation.to_dict()
