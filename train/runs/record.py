"""What a run was and what it ended with, in one record: final/record.json, and `record` in the summary."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from ...shared.cache import Cache
from ...shared.config.settings import to_dict
from ...shared.runs.curves import last_values
from ...shared.runs.folder import Run
from ..step.trainee import Trainee


def now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def record(run: Run, trainee: Trainee, cache: Cache, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Layer, sites, dictionary size, learning rate and penalties of a run; its figures and the last values of the eight
    curves of its training; when it began and ended, how long its steps took, and the most memory that the process held.

    Args:
        summary: of the run.
    """
    config = trainee.config
    spec = cache.spec(config.source)
    return {
        "run": run.name,
        "variant": config.variant,
        "seed": config.seed,
        "layer": spec.layer,
        "site": config.source,
        "target": config.target_site,
        "architecture": config.coder.architecture,
        "latents": config.coder.latents,
        "coder": to_dict(config.coder),
        "lr": config.optimizer.peak_lr(config.coder.latents),
        "penalties": {name: to_dict(penalty) for name, penalty in config.penalties.items()},
        **{key: summary.get(key) for key in ("steps", "tokens", "fvu", "l0", "dead")},
        "metrics": last_values(run.metrics()),
        "started": run.provenance.get("started"),
        "finished": now(),
        "seconds": summary["seconds"],
        "peak_memory": peak_memory(trainee.coder.w_enc.device),
    }


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most bytes held so far: by this process, all its runs together, and on the device where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device)
    return found
