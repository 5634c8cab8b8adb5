"""The run folder: everything that training hands to analysis.

    runs/<name>/  config.yaml  provenance.json  metrics.jsonl
                  checkpoints/step_00000500/{coder.safetensors, optimizer.safetensors, state.json}
                  samples/  anti_duplication_logs/
                  final/{coder.safetensors, config.json}

A checkpoint is complete or absent: it is written into a temporary folder, synced and renamed. A run is complete when
final/config.json exists, which is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..cache.files import make_folder, sync_folder, write_file, write_json
from ..coders.io import load_coder, read_coder_config, save_coder
from ..config.settings import dump_yaml, load_yaml
from ..errors import DataError, PipelineError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ..coders import Coder

    Tensors = Mapping[str, Tensor]

CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: the step, tensors of coder and optimizer, and the rest of the training state."""

    step: int
    coder: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


class Run:
    """One training run on disk. Build with `create_run` or `open_run`.

    Attributes:
        path: the run's folder.
        config: the resolved settings of the run (the `train` section), as plain data.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def complete(self) -> bool:
        """Whether training finished."""
        return (self.path / "final" / "config.json").is_file()

    @property
    def provenance(self) -> dict[str, Any]:
        """Package versions, commit and cache at the start of the run."""
        try:
            document: dict[str, Any] = json.loads((self.path / "provenance.json").read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / 'provenance.json'} cannot be read: {error}") from None
        return document

    # metrics

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. Numbers must be finite or None."""
        line = json.dumps(dict(metrics), ensure_ascii=False, allow_nan=False)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, in order, excluding a last line that a killed process left unfinished."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise DataError(f"{self.path / 'metrics.jsonl'} is not JSON lines: {error}") from None

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines after `step`: a resumed run logs again what a killed one logged after its last checkpoint."""
        kept = [line for line in self.metrics() if line.get("step", 0) <= step]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_file(self.path / "metrics.jsonl", [text.encode()])

    # checkpoints

    def checkpoints(self) -> list[Path]:
        """Folders of the checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step_*"))

    def save_checkpoint(
        self,
        step: int,
        coder_state: Tensors,
        optimizer_state: Tensors,
        state: Mapping[str, Any],
        keep: int | None = None,
    ) -> Path:
        """Write checkpoints/step_<step> completely or not at all, then delete all but the newest `keep`.

        Args:
            state: JSON-able rest of the training state (position in the data, schedules, random number generators).
        """
        from safetensors.torch import save

        parent = self.path / "checkpoints"
        parent.mkdir(exist_ok=True)
        sweep(parent)
        final, partial = parent / f"step_{step:08d}", parent / f".step_{step:08d}.partial"
        partial.mkdir()
        files = {
            "coder.safetensors": save({name: _plain(value) for name, value in coder_state.items()}),
            "optimizer.safetensors": save({name: _plain(value) for name, value in optimizer_state.items()}),
        }
        for name, data in files.items():
            write_file(partial / name, [data])
        document = {
            "format_version": CHECKPOINT_VERSION,
            "step": step,
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "state": dict(state),
        }
        write_json(partial / "state.json", document)
        if final.exists():  # the same step again, after a resume: bit-identical
            shutil.rmtree(final)
        partial.rename(final)
        sync_folder(parent)
        if keep is not None:
            for old in self.checkpoints()[: -max(keep, 1)]:
                shutil.rmtree(old)
        return final

    def load_checkpoint(self, path: Path | None = None) -> Checkpoint | None:
        """The newest checkpoint (or the one at `path`); None without checkpoints. Raises DataError if damaged."""
        from safetensors.torch import load

        if path is None:
            found = self.checkpoints()
            if not found:
                return None
            path = found[-1]
        remedy = f"delete {path} to go back to the checkpoint before it, then pipeline train -c {self.path} --resume"
        try:
            document = json.loads((path / "state.json").read_bytes())
            version = document["format_version"]
            if version > CHECKPOINT_VERSION:
                raise DataError(f"{path} has format version {version}, this program reads up to {CHECKPOINT_VERSION}")
            tensors = {}
            for name, expected in document["sha256"].items():
                data = (path / name).read_bytes()
                found_sum = hashlib.sha256(data).hexdigest()
                if found_sum != expected:
                    raise DataError(f"{path / name} is damaged: sha256 {found_sum}, expected {expected}", remedy)
                tensors[name] = load(data)
            return Checkpoint(
                document["step"], tensors["coder.safetensors"], tensors["optimizer.safetensors"], document["state"]
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DataError(f"checkpoint {path} cannot be read: {error}", remedy) from None

    # the end

    def finish(self, coder: Coder, summary: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> None:
        """Write final/: the coder and its config.json with `summary`; after that the run is complete.

        Args:
            summary: {"steps", "tokens", "fvu", "fvu_with_bos", "l0", "dead", "seconds"}.
            extra: {"source", "target", "cache": {"path", "identity"}, "training": {…}}.
        """
        save_coder(coder, self.path / "final", {**(extra or {}), "summary": dict(summary)})

    @property
    def final(self) -> dict[str, Any]:
        """final/config.json. Raises DataError when the run is not finished."""
        return read_coder_config(self.path / "final")

    @property
    def summary(self) -> dict[str, Any]:
        """The figures that training measured at the end."""
        summary: dict[str, Any] = self.final.get("summary", {})
        return summary

    def load_coder(self) -> Coder:
        """The finished coder, on the CPU, in evaluation mode."""
        return load_coder(self.path / "final")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing. Raises PipelineError when another process trains it; released even by kill -9."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise PipelineError(
                    f"run {self.name} is being trained by another process", "wait for it, or train under another --name"
                ) from None
            yield


def create_run(runs_dir: Path | str, name: str, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Run:
    """A new run folder with config.yaml and provenance.json. Raises UsageError when one of that name exists."""
    path = Path(runs_dir) / name
    if "/" in name or name in ("", ".", "..") or name.startswith("."):
        raise UsageError(
            f"{name!r} cannot name a run: the name becomes a folder in {runs_dir}",
            f"--name {name.strip('./').replace('/', '-') or 'run'}, or --set train.runs=FOLDER for another place",
        )
    if (path / "config.yaml").exists():
        raise UsageError(
            f"run {name} already exists in {runs_dir}",
            "pipeline train --resume continues it; --name starts another",
        )
    make_folder(path, "train.runs")
    write_json(path / "provenance.json", dict(provenance))
    write_file(path / "config.yaml", [dump_yaml(dict(config)).encode()])
    sync_folder(path)
    sync_folder(path.parent)
    return Run(path, dict(config))


def open_run(path: Path | str, allow_incomplete: bool = False) -> Run:
    """An existing run.

    Raises:
        DataError: the folder is not a run, or (unless `allow_incomplete`) the run is not finished.
    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise DataError(f"{path} is not a run (no config.yaml)", "pipeline status lists runs")
    run = Run(path, load_yaml(path / "config.yaml"))
    if not run.complete and not allow_incomplete:
        reached = run.checkpoints()
        where = f"its last checkpoint is {reached[-1].name}" if reached else "it has no checkpoint yet"
        raise DataError(f"run {run.name} is not finished: {where}", f"pipeline train -c {path} --resume")
    return run


def fvu_label(evaluated_on: str | None) -> str:
    """Label of a final FVU by its rows (`evaluated_on` of a summary), to tell it from the FVU of a report."""
    return "held-out FVU" if evaluated_on == "heldout" else "FVU"


def sweep(folder: Path) -> None:
    """Delete the leftovers of an interrupted writer from a checkpoint folder."""
    for leftover in folder.glob(".step_*.partial"):
        shutil.rmtree(leftover)


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()
