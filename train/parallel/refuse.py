"""What several processes cannot train together, refused by name before anything starts."""

from __future__ import annotations

from ...shared.coders import Coder
from ...shared.errors import UsageError
from ..config import TrainConfig


def refuse_unshared(config: TrainConfig, coder: Coder, count: int) -> None:
    """Raises UsageError where `count` processes cannot train this coder together.

    Args:
        coder: of the run, without weights (on the meta device).
    """
    problem = _problem(config, coder, count)
    if problem is not None:
        raise UsageError(
            f"run {config.run_name}: {count} processes (train.parallel: {config.parallel}) cannot train {problem[0]}",
            f"{problem[1]}, or train with one process",
        )


def _problem(config: TrainConfig, coder: Coder, count: int) -> tuple[str, str] | None:
    """(what cannot be trained, what to change); None where everything can."""
    if coder.selection is None:
        found = f"{config.coder.architecture}: the processes share out a selection of the largest pre-activations"
        return found, "train.coder.architecture: topk, batchtopk or matryoshka"
    if config.penalties:
        found = f"with penalties ({', '.join(config.penalties)}): they are computed from the codes of whole batches"
        return found, "--set train.penalties=null"
    if config.reseed is not None:
        return "with reseed", "--set train.reseed=null"
    if config.fused == "on":
        return "with train.fused: on", "--set train.fused=auto"
    if config.parallel == "data" and config.data.batch_size < count:
        return f"batches of {config.data.batch_size} rows", f"train.data.batch_size of at least {count}"
    return _problem_of_slices(config, count) if config.parallel == "latents" else None


def _problem_of_slices(config: TrainConfig, count: int) -> tuple[str, str] | None:
    """As `_problem`: what needs the whole dictionary in one place."""
    if config.coder.latents < count:
        return f"{config.coder.latents} latents", f"at most {config.coder.latents} processes"
    if config.monitors:
        found = f"with monitors ({', '.join(config.monitors)}): they look at the whole dictionary"
        return found, "--set train.monitors=null"
    for name, value in (("ema", config.ema), ("init", config.init), ("freeze", config.freeze)):
        if value:
            return f"with train.{name}", f"--set train.{name}={'[]' if name == 'freeze' else 'null'}"
    return None
