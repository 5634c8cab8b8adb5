"""Weights & Biases in addition to metrics.jsonl: off by default, and never the only copy of anything."""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ...shared.runs.folder import Run
from ...shared.runs.samples import SampleSet
from ..config import WandbConfig
from ..monitors.base import Histogram

SAMPLE_COLUMNS = ("latent", "specialised", "value", "text", "position", "document", "step")
"""Columns of the table of samples."""


class Tracker:
    """Sends what is logged to W&B; does nothing when the mode is off (wandb is not even imported)."""

    def __init__(self, config: WandbConfig, run: Run) -> None:
        self._run: Any = None
        if config.mode == "off":
            return
        import wandb

        mode = mode_in_use(config)
        folder = run.path / "wandb"
        folder.mkdir(exist_ok=True)
        self._run = wandb.init(
            mode=mode,
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=list(config.tags),
            name=run.name,
            id=run_id(folder),
            resume="allow" if mode == "online" else None,
            config=run.config,
            dir=str(folder),
            reinit="create_new",
            settings=wandb.Settings(silent=True),
        )

    def log(self, metrics: Mapping[str, Any], histograms: Mapping[str, Histogram]) -> None:
        """One line of metrics; "step" is its step."""
        if self._run is None:
            return
        import wandb

        numbers = {name: value for name, value in metrics.items() if value is not None}
        drawn = {
            f"histogram/{name}": wandb.Histogram(np_histogram=(found.counts, found.edges))
            for name, found in histograms.items()
        }
        self._run.log(numbers | drawn, step=metrics["step"])

    def log_samples(self, samples: SampleSet) -> None:
        """The saved samples as a table, one line each."""
        if self._run is None:
            return
        import wandb

        rows = [
            [latent.latent, latent.specialised, sample.value, sample.text, sample.position, sample.doc_id, sample.step]
            for latent in samples.latents
            for sample in latent.samples
        ]
        self._run.log({"samples": wandb.Table(columns=list(SAMPLE_COLUMNS), data=rows)}, step=samples.step)

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Close the W&B run, with the final figures."""
        if self._run is not None:
            if summary is not None:
                self._run.summary.update(dict(summary))
            self._run.finish()
            self._run = None


def run_id(folder: Path) -> str:
    """The W&B id of a run, drawn once and kept in its folder, so that a resumed run stays one W&B run."""
    path = folder / "run_id"
    if not path.is_file():
        path.write_text(secrets.token_hex(8) + "\n", encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def mode_in_use(config: WandbConfig) -> Literal["offline", "online"]:
    """The mode, with `auto` resolved: online if an API key for the server is found."""
    if config.mode == "auto":
        return "online" if key_present() else "offline"
    return "offline" if config.mode == "offline" else "online"


def key_present() -> bool:
    """Whether an API key is in the environment or in the netrc file, where W&B looks first."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    given = os.environ.get("NETRC")
    for path in [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(path).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
