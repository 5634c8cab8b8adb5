"""The training loop: load, step, log, save; then evaluate and finish."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping, Sequence
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
from .parallel.peers import Peers
from .plan import Group, TrainPlan, plan
from .runs.saving import all_written, writing
from .runs.session import Session, begin, open_runs, summarise, trackers_closed, unfinished
from .runs.summary import RunSummary, runs_text
from .samplers import build_sampler
from .step.autograd import train_step
from .step.reseed import reseed

__all__ = ["RunSummary", "TrainPlan", "plan", "runs_text", "train"]

SHOWN = {"loss": "loss", "fvu": "batch FVU", "l0": "L0"}
"""Figure of a line of metrics → its name beside the progress."""


def train(
    configs: Sequence[TrainConfig], console: Console | None = None, resume: bool = False, peers: Peers | None = None
) -> list[RunSummary]:
    """Train one coder per config; configs with the same cache, data settings and sampler share one read of the data.

    Args:
        resume: resume runs that exist (a finished one stays as it is); otherwise an existing run is refused.
        peers: the processes that train every run together (`train.parallel`); None: this one alone. All of them call
            this; the first writes.

    Raises:
        UsageError, DataError: refused before anything was written.
        PipelineError: the memory does not suffice (nothing was written); a loss was not finite:
            every other run was saved at its current step.
        KeyboardInterrupt: SIGINT or SIGTERM; every run was saved at its current step.
    """
    console = console or Console(quiet=True)
    groups = plan(configs, processes=1 if peers is None else peers.count).groups
    refuse_too_large(unfinished(groups))
    if peers is not None:
        refuse_differences(groups, peers)
    runs = open_runs(groups, resume, peers)
    with contextlib.ExitStack() as stack:
        for run in runs.values():
            stack.enter_context(run.lock())
        interrupt = stack.enter_context(interruptible())
        for group in groups:
            train_group(group, runs, console, interrupt, peers)
    if peers is not None:
        peers.wait()  # until the first has written what the others now read
    return [summarise(runs[config.path], config) for config in configs]


def train_group(
    group: Group, runs: Mapping[Path, Run], console: Console, interrupt: Interrupt, peers: Peers | None = None
) -> None:
    """Train the runs of one group side by side."""
    open_configs = [config for config in group.configs if not runs[config.path].complete]
    if not open_configs:
        return
    with writing() as thread:
        with contextlib.nullcontext() if peers is None else peers.in_turn():
            sessions = [begin(group, config, runs[config.path], thread, peers) for config in open_configs]
        with all_written([session.saving for session in sessions], console):
            _train(sessions, group, console, interrupt, peers)


def _train(
    sessions: Sequence[Session], group: Group, console: Console, interrupt: Interrupt, peers: Peers | None
) -> None:
    """From the step of the run that is furthest behind to the end of all."""
    behind = min(sessions, key=lambda session: session.step)  # a killed process may have saved one run and not the next
    data, sampler = group.configs[0].data, build_sampler(group.configs[0].sampler)
    label = f"train {sessions[0].run.name}" if len(sessions) == 1 else "train"
    with (
        trackers_closed(sessions),
        open_stream(
            group.cache, group.sites, data, sampler, behind.position, group.device, processes=group.processes
        ) as stream,
        console.progress(group.steps * data.batch_size, "tokens", label, behind.step * data.batch_size) as progress,
    ):
        for note in group.notes if peers is None or peers.first else ():
            console.warn(note)
        if group.download is not None:
            console.info(group.download)
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
                        if peers is not None:
                            raise  # perhaps here alone: the others must not wait for a step that does not come
                        failures[id(session)] = failure
            progress.advance(len(rows))
            stop, due = _agreed(sessions, interrupt.requested, peers)
            _save(sessions, stream, failures, due, everyone=stop or bool(failures), bound=peers is not None)
            _report(sessions, group, stream)
            if failures:
                raise next(iter(failures.values()))
            if stop:
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


def refuse_differences(groups: Sequence[Group], peers: Peers) -> None:
    """Raises UsageError where the processes would not read the same batches in the same order."""
    for group in groups:
        stream = group.stream.to_dict()
        alike = {name: stream[name] for name in ("total_steps", "rows_per_epoch", "train_rows", "window_rows")}
        peers.refuse_differences(
            alike | {"runs": [config.run_name for config in group.configs], "cache": group.cache.record["identity"]},
            "what this run reads",
            "--set train.data.pool_rows=N fixes the rows that are drawn from at a time, whatever memory is free",
        )


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


def _agreed(sessions: Sequence[Session], stop: bool, peers: Peers | None) -> tuple[bool, set[int]]:
    """(whether training stops after this step, ids of the sessions whose checkpoint is due): for any process, for all.
    A signal may have reached one of them only, and each has a clock of its own."""
    flags = [stop, *(session.checkpoint_due for session in sessions)]
    if peers is not None:
        flags = peers.any(flags)
    return flags[0], {id(session) for session, due in zip(sessions, flags[1:], strict=True) if due}


def _save(
    sessions: Sequence[Session],
    stream: Stream,
    failures: dict[int, PipelineError],
    due: Container[int],
    *,
    everyone: bool,
    bound: bool,
) -> None:
    """Save those runs that are due, or all; where one cannot be saved, all others, since training stops.

    Args:
        failures: id of a session → why it goes no further; those that cannot be saved are added.
        due: ids of sessions.
        bound: other processes take part, and must not wait for this one: an error is raised at once.
    """
    wanted = [one for one in sessions if id(one) not in failures and (everyone or id(one) in due)]
    if wanted:
        stream.check()
    before = len(failures)
    for session in wanted:
        try:
            session.save(stream)
        except PipelineError as failure:
            if bound:
                raise
            failures[id(session)] = failure
    if len(failures) > before and not everyone:
        _save(sessions, stream, failures, due, everyone=True, bound=bound)


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
