"""`pipeline tune`: measure, train on in the running model, measure again."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from ..shared.console import Console, shown
from ..shared.errors import PipelineError
from ..shared.interrupt import interruptible
from ..shared.runs.folder import Run
from ..shared.runs.tuned import before_and_after
from ..shared.text_table import legend, text_table
from .config import TuneConfig
from .figures import figures
from .plan import TunePlan, plan, refuse_too_large
from .session import create, existing, finish, ready, restore, save
from .step import StepResult, Tuned, tune_step

__all__ = ["TuneResult", "plan", "tune"]


@dataclass(frozen=True)
class TuneResult:
    """A tuned run.

    `before` and `after` hold the figures of `shared.runs.tuned`, and how many `rows` and `predictions` they come from.
    `evaluated_on` is "heldout" or "train". `notes`: what of the run's settings tuning does not carry over.
    """

    name: str
    path: str
    of: str
    update: str
    steps: int
    tokens: int
    seconds: float
    evaluated_on: str
    before: dict[str, Any]
    after: dict[str, Any]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes)}

    def __str__(self) -> str:
        tuned = {"before": self.before, "after": self.after}
        rows = [
            [name, *("–" if value is None else shown(value) for value in values)]
            for name, *values in before_and_after(tuned)
        ]
        where = "held-out" if self.evaluated_on == "heldout" else "trained-on"
        head = (
            f"{self.path}: {self.of} tuned ({self.update}) in {self.steps:,} steps, {self.tokens:,} tokens, "
            f"{self.seconds:.1f} s; {self.after['rows']:,} {where} rows, excluding position 0:"
        )
        notes = [f"note: {note}" for note in self.notes]
        table = text_table(rows, ["", "before", "after"])
        return "\n".join([head, table, legend([name for name, *_ in rows]), *notes])


def tune(config: TuneConfig, console: Console | None = None, *, resume: bool = False) -> TuneResult:
    """Tune a finished run end to end; the result is a new run beside it.

    Args:
        resume: continue from the last checkpoint (a finished run stays as it is); otherwise an existing run is refused.

    Raises:
        UsageError, DataError: refused before anything was written, or the model is not the one that was harvested.
        PipelineError: the memory does not suffice (nothing was written), or a loss was not finite.
        KeyboardInterrupt: SIGINT or SIGTERM; the run was saved at its current step.
    """
    console = console or Console(quiet=True)
    planned = plan(config)
    run = existing(planned, resume)
    if run is None or not run.complete:
        refuse_too_large(planned)
        tuned = ready(planned)
        run = create(planned) if run is None else run
        with run.lock():
            _tune(tuned, run, console)
    return result_of(run, planned)


def _tune(tuned: Tuned, run: Run, console: Console) -> None:
    planned, before = tuned.plan, restore(run, tuned)
    if before is None:
        console.info("figures of the coder as it is")
        before = figures(planned, tuned.coder, tuned.model)
    total, config = planned.steps, planned.config
    with (
        interruptible() as interrupt,
        console.progress(total, "steps", f"tune {planned.parent.name}", tuned.step) as progress,
    ):
        while tuned.step < total:
            began = time.perf_counter()
            done = tune_step(tuned)
            tuned.seconds += time.perf_counter() - began
            logged = tuned.step in (1, total) or tuned.step % config.log_every == 0
            if logged:
                run.log(_line(tuned, done))
            progress.advance(1, loss=float(done.terms.total.detach()), kl=float(done.terms.values["kl"]))
            if interrupt.requested or tuned.step == total or tuned.step % config.checkpoint_every == 0:
                save(run, tuned, before)
            if interrupt.requested and tuned.step < total:
                raise KeyboardInterrupt(f"{run.path} saved at step {tuned.step:,} of {total:,}")
    console.info("figures of the tuned coder")
    finish(run, tuned, before, figures(planned, tuned.coder, tuned.model))


def _line(tuned: Tuned, done: StepResult) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    return {
        "step": tuned.step,
        "tokens": tuned.tokens,
        "loss": float(done.terms.total.detach()),
        **{name: float(value) for name, value in done.terms.values.items()},
        "l0": float(done.l0),
        "lr": done.lr,
        "grad_norm": float(done.grad_norm),
        "tokens_per_second": tuned.tokens / tuned.seconds if tuned.seconds > 0 else None,
    }


def result_of(run: Run, planned: TunePlan) -> TuneResult:
    """The result in a finished run's summary."""
    summary = run.summary
    if "tuned" not in summary:
        raise PipelineError(f"{run.path} has no figures of a tuning in its summary")
    return TuneResult(
        name=run.name,
        path=str(run.path),
        of=planned.parent.name,
        update=planned.config.update,
        steps=summary["steps"],
        tokens=summary["tokens"],
        seconds=summary["seconds"],
        evaluated_on=summary["evaluated_on"],
        before=summary["tuned"]["before"],
        after=summary["tuned"]["after"],
        notes=planned.notes,
    )
