"""A tuned run's folder: begun, resumed, saved and finished, bit-identical however often it is interrupted."""

from __future__ import annotations

from typing import Any

import torch

from ..models.loading import load_model
from ..models.origin import check_model
from ..shared.cache.format import differences
from ..shared.coders import Coder
from ..shared.config.settings import to_dict
from ..shared.errors import DataError, UsageError, command
from ..shared.provenance import provenance
from ..shared.runs.folder import Checkpoint, Run, create_run, open_run
from .config import OPERATIONAL
from .plan import TunePlan
from .step import Tuned
from .update import Update


def existing(plan: TunePlan, resume: bool) -> Run | None:
    """The run to resume; None where the tuning begins.

    Raises:
        UsageError: the new run's folder exists and `resume` is off.
        DataError: with `resume`: there is no such run, or it was started with other settings or from another coder.
    """
    found = (plan.path / "config.yaml").exists()
    if not resume:
        if found and (before := open_run(plan.path, allow_incomplete=True)).untouched:
            before.remove_untouched()
        if plan.path.exists():
            raise UsageError(f"{plan.path} already exists", "--resume   (resumes it; --name begins another)")
        return None
    if not found:
        raise DataError(f"--resume: there is no run {plan.path}", "the same command without --resume begins it")
    run = open_run(plan.path, allow_incomplete=True)
    _refuse_others(run, plan)
    run.drop_damaged_final()
    return run


def create(plan: TunePlan) -> Run:
    """The new run's folder."""
    made_with = {**provenance(), "cache": plan.cache.record, "tuned": _parent(plan)}
    return create_run(plan.path.parent, plan.path.name, _settings(plan), made_with)


def ready(plan: TunePlan) -> Tuned:
    """The tuning before its first step: the model loaded and checked, the coder as its run left it.

    Raises:
        DataError: the model is not the one that was harvested.
        UsageError: it cannot be loaded, or nothing of the coder would move.
    """
    device = plan.checkpoint.device
    model = load_model(plan.checkpoint, plan.model_name).to(device)
    check_model(plan.cache, plan.checkpoint, model, plan.source)
    coder = plan.parent.load_coder().to(device)
    _restore_training_state(plan.parent, coder)
    frozen = plan.final.get("training", {}).get("freeze", ())
    return Tuned(plan, coder, model, Update(coder, plan.config, frozen))


def restore(run: Run, tuned: Tuned) -> dict[str, Any] | None:
    """Bring a tuning to the run's last checkpoint; the figures before it, None without a checkpoint.

    Raises:
        DataError: a file of the run is damaged.
    """
    saved = run.load_checkpoint()
    if saved is not None:
        run.check_records(saved)
        _restore(tuned, saved)
    run.rewind_metrics(saved)
    return None if saved is None else dict(saved.state["before"])


def save(run: Run, tuned: Tuned, before: dict[str, Any]) -> None:
    """Write a checkpoint, atomically."""
    state = {
        "tokens": tuned.tokens,
        "total_steps": tuned.plan.steps,
        "seconds": tuned.seconds,
        "before": before,
    }
    keep = tuned.plan.config.keep_checkpoints
    run.save_checkpoint(tuned.step, tuned.coder.state_dict(), tuned.update.state(), state, keep)


def finish(run: Run, tuned: Tuned, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Write final/: the run is complete from here on."""
    plan = tuned.plan
    summary = {
        "steps": tuned.step,
        "tokens": tuned.tokens,
        "fvu": after["fvu"],
        "fvu_dims": after["fvu_dims"],
        "l0": after["l0"],
        "dead": after["dead"],
        "seconds": tuned.seconds,
        "evaluated_on": "heldout" if plan.rows.heldout else "train",
        "trained_steps": plan.trained_steps + tuned.step,
        "tuned": {"of": plan.parent.name, "before": before, "after": after},
    }
    kept: tuple[str, ...] = ("source", "target", "cache", "imported")
    extra: dict[str, Any] = {name: plan.final[name] for name in kept if name in plan.final}
    extra |= {"tuned": {**_parent(plan), "settings": to_dict(plan.config)}}
    if "training" in plan.final:
        extra["training"] = {**plan.final["training"], "name": run.name, "tune": to_dict(plan.config)}
    run.finish(tuned.coder.eval(), summary, extra)


def _settings(plan: TunePlan) -> dict[str, Any]:
    """The settings in config.yaml: those of the parent's training, and `tune`."""
    return {**plan.parent.config, "name": plan.path.name, "tune": to_dict(plan.config)}


def _parent(plan: TunePlan) -> dict[str, Any]:
    return {"run": str(plan.parent.path), "sha256": plan.final["sha256"]}


def _refuse_others(run: Run, plan: TunePlan) -> None:
    """Raises DataError where a run to resume was begun with other settings, or from another coder."""

    def compared(settings: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in settings.items() if name not in OPERATIONAL}

    if "tune" not in run.config:
        raise DataError(f"{run.path} is not a tuned run", "--name for another")
    lines = differences(compared(run.config["tune"]), compared(to_dict(plan.config)), owner="the run")
    begun_from = run.provenance.get("tuned", {}).get("sha256")
    if begun_from != plan.final["sha256"]:
        lines.append(
            f"coder: the run began with {str(begun_from)[:12]}…, {plan.parent.path} has {plan.final['sha256'][:12]}…"
        )
    if lines:
        raise DataError(
            f"run {run.name} was started with different settings:\n" + "\n".join(lines),
            f"{command('tune', '-c', run.path, '--resume')}   (resumes it as it was; --name NAME begins one)",
        )


def _restore_training_state(parent: Run, coder: Coder) -> None:
    """What only training reads of a coder, from the parent's last checkpoint: the weight of its penalty, for one.

    Without a checkpoint, a threshold θ goes on as the moving average that it is, instead of starting anew.
    """
    saved = parent.load_checkpoint() if parent.checkpoints() else None
    for name, value in coder.named_buffers():
        if saved is not None and name in ("log_pressure", "l0_error", "threshold_steps"):
            value.copy_(saved.coder[name])
        elif name == "threshold_steps":
            value.fill_(getattr(coder.config, "threshold_warmup", 0))


@torch.no_grad()
def _restore(tuned: Tuned, saved: Checkpoint) -> None:
    tuned.coder.load_state_dict(saved.coder)
    tuned.update.load_state(saved.optimizer)
    tuned.step, tuned.tokens, tuned.seconds = saved.step, saved.state["tokens"], saved.state["seconds"]
