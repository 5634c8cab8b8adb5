"""Weights & Biases beside metrics.jsonl: off unless asked for, and never the only place anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from shared.runs import Run
from train.config import WandbConfig


class Tracker:
    """Sends what is logged to W&B; does nothing when the mode is off (wandb is not even imported)."""

    def __init__(self, config: WandbConfig, run: Run) -> None:
        self._run: Any = None
        if config.mode == "off":
            return
        import wandb

        folder = run.path / "wandb"
        folder.mkdir(exist_ok=True)
        self._run = wandb.init(
            mode=config.mode,
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=list(config.tags),
            name=run.name,
            # One run folder is one W&B run, however often it is resumed.
            id=hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:16],
            resume="allow" if config.mode == "online" else None,
            config=run.config,
            dir=str(folder),
            reinit="create_new",
            settings=wandb.Settings(silent=True),
        )

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One line of metrics; "step" is its step."""
        if self._run is not None:
            numbers = {name: value for name, value in metrics.items() if value is not None}
            self._run.log(numbers, step=metrics["step"])

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Close the W&B run, with the final figures."""
        if self._run is not None:
            if summary is not None:
                self._run.summary.update(dict(summary))
            self._run.finish()
            self._run = None
