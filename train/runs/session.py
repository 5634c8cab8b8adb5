"""A run in training: its folder, its log, its checkpoints, its end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from ...shared.cache import Cache
from ...shared.cache.batch import Batch
from ...shared.cache.concentration import concentration_note
from ...shared.cache.format import differences
from ...shared.cache.outliers import SiteOutliers
from ...shared.coders import Coder
from ...shared.config.settings import to_dict, validate
from ...shared.errors import ConfigError, OtherSettingsError, PipelineError, UsageError, command
from ...shared.provenance import provenance
from ...shared.runs.folder import Run, copy_of, create_run, open_run
from ...shared.runs.records import wrong_records
from ..config import OPERATIONAL, TrainConfig, WandbConfig
from ..data.stream import Stream
from ..divergence import divergence
from ..evaluate import Evaluation
from ..monitors.log import DuplicationLog
from ..monitors.watch import MonitorReport
from ..parallel.peers import Peers
from ..plan import Group
from ..samples.report import SampleWriter
from ..step.begin import moved, new_trainee
from ..step.result import StepResult
from ..step.trainee import Trainee
from . import checkpoint
from .onlooker import Onlooker
from .progress import rewind_progress, write_progress
from .record import now, record
from .saving import Saving
from .summary import RunSummary
from .tracking import Tracker

OPERATIONAL_DATA = ("workers", "prefetch", "resident", "memory_gb", "checksums")
"""Data settings that a resumed run may change: the position in a checkpoint fixes the order of the rows."""


def concentration(evaluation: Evaluation, outliers: SiteOutliers) -> dict[str, Any]:
    """How much of the target's variance lies where, and a note in words where the FVU says little about most of it."""
    return {
        "outlying_share": outliers.dimensions_share,
        "massive_share": outliers.share_of_variance,
        "note": concentration_note(evaluation.fvu, evaluation.fvu_dims, outliers),
    }


@dataclass
class Session:
    """One run in the loop.

    Attributes:
        position: the stream position of the checkpoint it resumes from; None: from the beginning.
        duplicates: writes the monitors' reports. samples: writes the activation samples.
        report: the monitors' report after the step just done, for its line of metrics.
        first_loss: of the run's first line of metrics.
        saved_step: of the newest checkpoint that was begun; None: there is none. saved_at: when that was, or when the
            session began (`time.monotonic`).
        clock: (time, seconds waited for data, tokens) at the last line of metrics.
    """

    trainee: Trainee
    run: Run
    tracker: Tracker
    saving: Saving
    position: dict[str, Any] | None
    duplicates: DuplicationLog | None = None
    samples: SampleWriter | None = None
    report: MonitorReport | None = field(default=None, repr=False)
    first_loss: float | None = None
    saved_step: int | None = None
    saved_at: float = field(default_factory=time.monotonic)
    clock: tuple[float, float, int] | None = field(default=None, repr=False)

    @property
    def step(self) -> int:
        return self.trainee.step

    @property
    def log_due(self) -> bool:
        """Whether the next step is logged: the first, every `log_every`-th, the last, and where monitors report."""
        number, watch = self.step + 1, self.trainee.watch
        if number in (1, self.trainee.total_steps) or number % self.trainee.config.log_every == 0:
            return True
        return watch is not None and watch.due(number)

    @property
    def checkpoint_due(self) -> bool:
        """Whether the step just done is saved: the last, those with a report, and every `checkpoint_every`-th once
        `checkpoint_minutes` have passed since the checkpoint before."""
        config = self.trainee.config
        if self.step == self.trainee.total_steps or self.report_due:
            return True
        if self.step % config.checkpoint_steps:
            return False
        minutes = config.minutes_between_checkpoints(self.trainee.coder.b_enc.device.type)
        return time.monotonic() - self.saved_at >= 60 * minutes

    @property
    def report_due(self) -> bool:
        """Whether the checkpoint of the step just done comes with a report."""
        config = self.trainee.config
        return config.report_every is not None and self.step % (config.checkpoint_steps * config.report_every) == 0

    def report_progress(self, evaluation: Evaluation, group: Group) -> None:
        """Write the report of a checkpoint."""
        if not isinstance(self.run, Onlooker):
            write_progress(self.run, self.step, evaluation.to_dict(), _evaluated_on(group))

    def look(self, result: StepResult, rows: Batch) -> None:
        """Pass the step just done to samples and monitors, and what monitors found to the weights that follow them."""
        if isinstance(self.run, Onlooker):
            return
        watch, samples = self.trainee.watch, self.trainee.samples
        if samples is not None and samples.due(self.step):
            samples.collect(self.step, result.codes(), rows)
        if watch is None or self.duplicates is None:
            return
        if watch.wants(self.step):
            watch.observe(result.codes(), rows.position)
        if watch.due(self.step):
            report = watch.report(self.step, self.trainee.coder)
            self.trainee.objective.hear(report.figures)
            self.duplicates.write(report)
            self.report = report

    def log(self, result: StepResult, stream: Stream) -> dict[str, Any]:
        """Write one line of metrics.jsonl about the step just done."""
        trainee = self.trainee
        now = (time.perf_counter(), stream.waited_seconds, trainee.tokens)
        seconds, waited, tokens = (a - b for a, b in zip(now, self.clock or now, strict=True))
        self.clock = now
        line: dict[str, Any] = {
            "step": trainee.step,
            "tokens": trainee.tokens,
            "epoch": trainee.tokens / stream.plan.rows_per_epoch,
            "loss": float(result.terms.total.detach()),
            **{f"{name}_ema": value for name, value in _numbers(trainee.averages).items()},
            **_numbers(result.terms.values),
            **{f"{name}/weight": weight for name, weight in result.terms.weights.items()},
            **trainee.objective.metrics(),
            **({} if trainee.config.reseed is None else {"reseeded": trainee.reseeded, "merged": trainee.merged}),
            **result.measures,
            **stream.sampler.metrics(),
            **({"nonfinite_rows": n} if (n := stream.plan.nonfinite_rows) else {}),
            **(self.report.figures if self.report else {}),
            "lr": result.lr,
            "grad_norm": float(result.grad_norm),
            "tokens_per_second": tokens / seconds if seconds > 0 else None,
            "wait_share": waited / seconds if seconds > 0 else None,
        }
        reason = divergence(line, self.first_loss, _largest(result))
        self.first_loss = line["loss"] if self.first_loss is None else self.first_loss
        self.run.log(line)
        if reason is not None:
            self.diverged(reason)
        self.tracker.log(line, self.report.histograms if self.report else {})
        self.report = None
        return line

    def diverged(self, reason: str) -> None:
        """Notes the first divergence in the run's folder. Raises PipelineError where the settings say stop."""
        if self.run.note is None:
            self.run.write_note({"step": self.step, "diverged": reason})
        if self.trainee.config.diverged == "stop":
            raise PipelineError(
                f"run {self.run.name} diverged at step {self.step:,}: {reason}",
                "lower train.optimizer.lr or a penalty's weight; --set train.diverged=warn trains on",
            )

    def save(self, stream: Stream) -> None:
        """Write the samples so far and begin to write a checkpoint, unless this step is saved already.

        Raises:
            PipelineError: a gradient of the fused step was not finite, or the checkpoint before could not be written.
        """
        if self.step != self.saved_step:
            if self.samples is not None:
                self.tracker.log_samples(self.samples.write(self.step))
            if isinstance(self.run, Onlooker):
                checkpoint.capture(self.trainee, stream.position())  # its part, which the first process writes
            else:
                self.saving.save(self.trainee, stream.position())
            self.saved_step, self.saved_at = self.step, time.monotonic()

    def finish(self, evaluation: Evaluation, group: Group, average: tuple[Coder, Evaluation] | None = None) -> None:
        """Write final/, after the last checkpoint: the run is complete from here on.

        Args:
            average: the coder of averaged weights with its figures, written to final/ema first.
        """
        self.saving.wait()
        trainee, config = self.trainee, self.trainee.config
        summary = {
            "steps": trainee.step,
            "tokens": trainee.tokens,
            **evaluation.to_dict(),
            **concentration(evaluation, group.cache.outliers(config.target_site)),
            "dead": trainee.coder.n_dead,
            "seconds": trainee.clock.seconds,
            "fvu_untrained": trainee.untrained.get("fvu"),
            "evaluated_on": _evaluated_on(group),
            "nonfinite_rows": group.stream.nonfinite_rows,
        }
        extra = {
            "source": config.source,
            "target": config.target_site,
            "cache": group.cache.record,
            "training": to_dict(config),
        }
        if (distance := moved(config, group.cache, trainee.coder)) is not None:
            summary["moved"] = distance
        if average is not None:
            coder, figures = average
            summary |= {"fvu_ema": figures.fvu, "l0_ema": figures.l0}
            self.run.save_average(coder, {"steps": trainee.step, "tokens": trainee.tokens, **figures.to_dict()}, extra)
        summary["record"] = self.run.write_record(record(self.run, trainee, group.cache, summary))
        self.run.finish(trainee.whole_coder(), summary, extra)
        self.tracker.finish(summary)


def _numbers(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """The terms of a loss that were computed, by name."""
    numbers = {name: float(value.detach()) for name, value in terms.items()}
    return {name: number for name, number in sorted(numbers.items()) if not math.isnan(number)}


def existing_runs(groups: Sequence[Group], resume: bool) -> dict[Path, Run]:
    """The runs that have a folder already, by path; those that stopped before their first step are none, and make room.

    Raises:
        UsageError: a run of that name exists and `resume` is off.
        DataError: a run to resume has different settings or another cache (every difference is listed).
    """
    pairs = [(config, group) for group in groups for config in group.configs]
    found = {
        config.path: open_run(config.path, allow_incomplete=True)
        for config, _ in pairs
        if is_run(config.path) and not Run(config.path, {}).untouched  # its settings may be half written
    }
    for config, group in pairs:
        if config.path in found:
            if not resume:
                raise UsageError(
                    f"run {config.run_name} already exists in {config.runs}",
                    "--resume   (resumes it; --name begins another)",
                )
            _refuse_other_settings(found[config.path], config, group.cache)
    return found


def open_runs(groups: Sequence[Group], resume: bool, peers: Peers | None = None) -> dict[Path, Run]:
    """The folder of every run, by path: created, or with `resume` the existing one. Of several processes the first does
    so, and the others look on. Raises: as `existing_runs`."""
    if peers is None:
        return _open_runs(groups, resume)
    with peers.in_turn():
        if peers.first:
            return _open_runs(groups, resume)
        paths = [config.path for group in groups for config in group.configs]
        return {path: Onlooker(path, open_run(path, allow_incomplete=True).config) for path in paths}


def _open_runs(groups: Sequence[Group], resume: bool) -> dict[Path, Run]:
    found = existing_runs(groups, resume)
    for run in found.values():
        run.drop_damaged_final()  # written again from the last checkpoint
    for group in groups:
        for config in group.configs:
            if config.path not in found:
                if is_run(config.path):
                    Run(config.path, {}).remove_untouched()
                made_with = {**provenance(), "cache": group.cache.record, "started": now()}
                found[config.path] = create_run(config.runs, config.run_name, to_dict(config), made_with)
    return found


def unfinished(groups: Sequence[Group]) -> list[Group]:
    """The groups without the runs that are finished: those need no memory."""
    left = []
    for group in groups:
        paths = [config.path for config in group.configs]
        done = {path for path in paths if is_run(path) and open_run(path, allow_incomplete=True).complete}
        if configs := [config for config in group.configs if config.path not in done]:
            left.append(replace(group, configs=configs))
    return left


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / "config.yaml").exists() or copy_of(path / "config.yaml").exists()


def begin(
    group: Group, config: TrainConfig, run: Run, thread: ThreadPoolExecutor, peers: Peers | None = None
) -> Session:
    """A session at its start, or at its run's last checkpoint.

    Args:
        thread: writes its checkpoints.
        peers: the processes that train it together; None: this one alone.
    """
    if isinstance(run, Onlooker):
        return _begin_beside(group, replace(config, samples=None), run, thread, peers)
    trainee = new_trainee(config, group.cache, group.steps, group.stream.rows_per_epoch, group.device, peers)
    saved = run.load_checkpoint()
    if saved is not None:
        run.check_records(saved)
        checkpoint.restore(run, trainee, saved)
    run.rewind_metrics(saved)
    rewind_progress(run, trainee.step)
    if run.note is not None and run.note.get("step", 0) > trainee.step:
        run.write_note(None)
    position = None if saved is None else saved.state["position"]
    duplicates = DuplicationLog(run.path, trainee.step) if config.monitors else None
    samples = None if trainee.samples is None else SampleWriter(run.path, trainee.samples, group.cache)
    if samples is not None and saved is not None and wrong_records(run.path, saved.files):
        samples.write(saved.step)  # lost, or of a later step that a killed run did not save
    first = next((line.get("loss") for line in run.metrics()), None)
    return Session(
        trainee,
        run,
        Tracker(config.wandb, run),
        Saving(run, thread, group.device),
        position,
        duplicates,
        samples,
        first_loss=first,
        saved_step=None if saved is None else saved.step,
    )


def _begin_beside(
    group: Group, config: TrainConfig, run: Run, thread: ThreadPoolExecutor, peers: Peers | None
) -> Session:
    """The session of a process that trains a run with the first, once that one has begun, and writes nothing."""
    trainee = new_trainee(config, group.cache, group.steps, group.stream.rows_per_epoch, group.device, peers)
    saved = run.load_checkpoint()
    if saved is not None:
        checkpoint.restore(run, trainee, saved)
    return Session(
        trainee,
        run,
        Tracker(WandbConfig(), run),
        Saving(run, thread, group.device),
        None if saved is None else saved.state["position"],
        first_loss=next((line.get("loss") for line in run.metrics()), None),
        saved_step=None if saved is None else saved.step,
    )


def _evaluated_on(group: Group) -> str:
    return "heldout" if group.stream.heldout_rows else "train"


def _largest(result: StepResult) -> float:
    """The largest activation of a step."""
    value = result.codes().values
    return float(value.max()) if value.numel() else 0.0


@contextlib.contextmanager
def trackers_closed(sessions: Sequence[Session]) -> Iterator[None]:
    """Close every tracker, however training ends."""
    try:
        yield
    finally:
        for session in sessions:
            session.tracker.finish()


def summarise(run: Run, config: TrainConfig) -> RunSummary:
    """The summary of a finished run."""
    shown: dict[str, Any] = {"name": run.name, "path": str(run.path), "variant": config.variant, **run.summary}
    fields: dict[str, Any] = {name: shown.get(name) for name in RunSummary.__dataclass_fields__}
    return RunSummary(**fields)


def _refuse_other_settings(run: Run, config: TrainConfig, cache: Cache) -> None:
    lines = differences(_compared(_as_of_now(run.config)), _compared(to_dict(config)), owner="the run")
    known, now = run.provenance.get("cache", {}), cache.record
    none: dict[str, Any] = {}
    for one, two in zip_longest((known, *known.get("beside", ())), (now, *now.get("beside", ())), fillvalue=none):
        if one.get("identity") != two.get("identity"):
            found = f"{two['path']} is {two['identity']}" if two else "these settings name no such cache"
            lines.append(f"cache: the run was trained on {one.get('identity', 'no such cache')}, {found}")
    if lines:
        own = command("train", "-c", run.path, "--resume")
        raise OtherSettingsError(
            f"run {run.name} was started with different settings:\n" + "\n".join(lines),
            f"{own}   (resumes it with its own settings; --name NAME without --resume trains another with these)",
        )


def _as_of_now(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings, with settings added since at their defaults, which change nothing."""
    try:
        return to_dict(validate(TrainConfig, settings))
    except ConfigError:  # a setting that no longer exists: listed as a difference
        return settings


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in settings.items() if name not in OPERATIONAL}
    kept["data"] = {name: value for name, value in settings.get("data", {}).items() if name not in OPERATIONAL_DATA}
    return kept
