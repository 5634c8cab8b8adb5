"""The run folder: everything that training hands to analysis.

    runs/<name>/  config.yaml  provenance.json  metrics.jsonl  (.config.yaml.copy  .provenance.json.copy)
                  checkpoints/step_00000500/{coder.safetensors, optimizer.safetensors, state.json}
                  samples/  anti_duplication_logs/  progress/
                  final/{coder.safetensors, config.json, record.json}

A checkpoint is complete or absent: it is written into a temporary folder, synced and renamed. A run is complete when
final/config.json exists, which is written last.

Nothing vouches for itself: provenance.json, state.json and final/config.json carry a seal (shared.cache.files);
the first holds the sha256 of config.yaml, the others those of the tensors and of every file beside them. config.yaml
and provenance.json follow from nothing else, so each is stored twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..cache.files import (
    make_folder,
    read_file,
    read_sealed,
    sealed_bytes,
    sync_folder,
    write_file,
    write_hashed,
    write_json,
    write_sealed,
)
from ..cache.lock import open_lock, try_lock
from ..coders.io import load_coder, read_coder_config, save_coder
from ..config.settings import dump_yaml
from ..config.yaml import parse_mapping
from ..errors import ConfigError, DamagedError, DataError, PipelineError, UsageError, command, repair_command
from ..explain import naming
from ..schemas import Provenance, State, checked
from .records import NOTE, RECORD, Records, records_of, sync_all, written_again, wrong_records

if TYPE_CHECKING:
    from torch import Tensor

    from ..coders import Coder

    Tensors = Mapping[str, Tensor]

CHECKPOINT_VERSION = 2
CONFIG, PROVENANCE, METRICS = "config.yaml", "provenance.json", "metrics.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: the step, tensors of coder and optimizer, and the rest of the training state.

    Attributes:
        files: the run's other files at that step.
    """

    step: int
    coder: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    files: Records


class Run:
    """One training run on disk. Build with `create_run` or `open_run`.

    Attributes:
        path: the run's folder.
        config: the resolved settings of the run (the `train` section, and `tune` of a tuned run), as plain data.
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
    def untouched(self) -> bool:
        """Whether training stopped before its first step: nothing was learned, measured or logged."""
        return not (self.complete or self.checkpoints() or self.metrics())

    def remove_untouched(self) -> None:
        """Removes the folder of a run that did no step. Raises PipelineError when another process is about to."""
        with self.lock():
            if self.untouched:
                remove_folder(self.path)

    @property
    def provenance(self) -> dict[str, Any]:
        """Package versions, commit and cache at the start of the run. Raises DataError if it is damaged."""
        file = self.path / PROVENANCE
        document = checked(Provenance, read_sealed(file), file)
        del document["config_sha256"]
        return document

    @property
    def note(self) -> dict[str, Any] | None:
        """What training noticed: `step` and `diverged`, in words. Raises DataError if it is damaged."""
        file = self.path / NOTE
        return read_sealed(file) if file.exists() else None

    def write_note(self, note: Mapping[str, Any] | None) -> None:
        """Sets the note, or removes it."""
        if note is None:
            (self.path / NOTE).unlink(missing_ok=True)
            sync_folder(self.path)
        else:
            write_sealed(self.path / NOTE, note)

    # metrics

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. Numbers must be finite or None."""
        line = json.dumps(dict(metrics), ensure_ascii=False, allow_nan=False)
        with naming(self.path / METRICS), (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, in order, excluding a last line that a killed process left unfinished."""
        return [value for _, value in self._metric_lines()]

    def _metric_lines(self) -> list[tuple[bytes, dict[str, Any]]]:
        file = self.path / METRICS
        if not file.exists():
            return []
        found = []
        for number, line in enumerate(read_file(file).splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}:{number} is not JSON lines: {error}", repair_command(file)) from None
            if not isinstance(value, dict):
                raise DataError(f"{file}:{number} is not JSON lines: expected an object", repair_command(file))
            found.append((line, value))
        return found

    def rewind_metrics(self, checkpoint: Checkpoint | None) -> None:
        """Drop what was logged after a checkpoint (None: everything): a resumed run logs it again. Whatever is in those
        lines, and be it damage, is not read."""
        file = self.path / METRICS
        size = 0 if checkpoint is None else checkpoint.files.get(METRICS, {"bytes": 0})["bytes"]
        write_file(file, [read_file(file)[:size] if size else b""])
        sync_folder(self.path)

    # checkpoints

    def checkpoints(self) -> list[Path]:
        """Folders of the checkpoints, oldest first."""
        return sorted(one for one in (self.path / "checkpoints").glob("step_*") if one.is_dir())

    def save_checkpoint(
        self,
        step: int,
        coder_state: Tensors,
        optimizer_state: Tensors,
        state: Mapping[str, Any],
        keep: int | None = None,
        files: Records | None = None,
    ) -> Path:
        """Write checkpoints/step_<step> completely or not at all, then delete all but the newest `keep`.

        Args:
            state: JSON-able rest of the training state (position in the data, schedules, random number generators).
            files: the run's other files at that step; None: as they are now.
        """
        from .tensors import safetensors_parts

        parent = self.path / "checkpoints"
        parent.mkdir(exist_ok=True)
        sync_folder(self.path)
        sweep(parent)
        final, partial = parent / f"step_{step:08d}", parent / f".step_{step:08d}.partial"
        sync_all(self.path)  # what the state vouches for is on disk before it
        partial.mkdir()
        tensors = {"coder.safetensors": coder_state, "optimizer.safetensors": optimizer_state}
        document = {
            "format_version": CHECKPOINT_VERSION,
            "step": step,
            "sha256": {name: write_hashed(partial / name, safetensors_parts(t)) for name, t in tensors.items()},
            "state": dict(state),
            "files": records_of(self.path) if files is None else files,
        }
        write_sealed(partial / "state.json", document)
        if final.exists():  # the same step again, after a resume
            remove_folder(final)
        partial.rename(final)
        sync_folder(parent)
        if keep is not None:
            for old in self.checkpoints()[: -max(keep, 1)]:
                remove_folder(old)
        return final

    def load_checkpoint(self, path: Path | None = None) -> Checkpoint | None:
        """The newest checkpoint (or the one at `path`); None without checkpoints. Raises DataError if damaged."""
        from safetensors.torch import load

        if path is None:
            found = self.checkpoints()
            if not found:
                return None
            path = found[-1]
        remedy = command("verify", self.path, "--repair")
        document = read_sealed(path / "state.json", remedy, CHECKPOINT_VERSION)
        checked(State, document, path / "state.json", remedy)
        names = ("coder.safetensors", "optimizer.safetensors")
        if f"step_{document['step']:08d}" != path.name or set(document["sha256"]) != set(names):
            raise DataError(f"{path} holds the checkpoint of step {document['step']}", remedy)
        config = document["files"].get(CONFIG, {}).get("sha256")
        if config != hashlib.sha256(read_file(self.path / CONFIG)).hexdigest():
            raise DataError(f"{path} belongs to another run: its {CONFIG} differs", remedy)
        tensors = {}
        for name in names:
            data = read_file(path / name, remedy)
            found_sum = hashlib.sha256(data).hexdigest()
            if found_sum != document["sha256"][name]:
                raise DataError(
                    f"{path / name} is damaged: sha256 {found_sum}, expected {document['sha256'][name]}", remedy
                )
            try:
                tensors[name] = load(data)
            except (ValueError, KeyError, SafetensorError) as error:
                raise DataError(f"checkpoint {path} cannot be read: {error}", remedy) from None
        return Checkpoint(document["step"], tensors[names[0]], tensors[names[1]], document["state"], document["files"])

    def check_records(self, checkpoint: Checkpoint) -> None:
        """Raises DataError when metrics or logs before a checkpoint are not those that it was saved with."""
        wrong = [name for name in wrong_records(self.path, checkpoint.files) if not written_again(name)]
        if wrong:
            raise DataError(
                f"{self.path / wrong[0]} is damaged: not as it was at step {checkpoint.step:,}",
                command("verify", self.path, "--repair"),
            )

    # the end

    def save_average(self, coder: Coder, summary: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> None:
        """Write final/ema/: the coder with the moving average of the weights, before `finish`. Arguments as there."""
        save_coder(coder, self.path / "final" / "ema", {**(extra or {}), "summary": dict(summary)})

    def write_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Writes final/record.json, before `finish`, and returns the record."""
        (self.path / "final").mkdir(exist_ok=True)
        write_json(self.path / RECORD, record)
        return dict(record)

    def finish(self, coder: Coder, summary: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> None:
        """Write final/: the coder and its config.json with `summary`; after that the run is complete.

        Args:
            summary: {"steps", "tokens", "fvu", "fvu_with_bos", "l0", "dead", "seconds"}; of a tuned run also "tuned".
            extra: {"source", "target", "cache": {"path", "identity"}, "training": {…}, "tuned": {"run", "sha256"}}.
        """
        sync_all(self.path)
        files = records_of(self.path)
        save_coder(coder, self.path / "final", {**(extra or {}), "summary": dict(summary), "files": files})

    def drop_damaged_final(self) -> bool:
        """Removes final/ if it is damaged, so that the run can be finished again; whether it was."""
        if self.complete:
            try:
                self.load_coder()
                if (self.path / "final" / "ema").exists():
                    load_coder(self.path / "final" / "ema")
            except DamagedError:
                remove_folder(self.path / "final")
                return True
        return False

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
        descriptor = open_lock(self.path / ".lock")
        try:
            if not try_lock(descriptor, fcntl.LOCK_EX, self.path / ".lock"):
                raise PipelineError(
                    f"run {self.name} is being trained by another process", "wait for it, or train under another --name"
                )
            yield
        finally:
            os.close(descriptor)


def create_run(runs_dir: Path | str, name: str, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Run:
    """A new run folder with config.yaml and provenance.json. Raises UsageError when one of that name exists."""
    path = Path(runs_dir) / name
    if "/" in name or name in ("", ".", "..") or name.startswith("."):
        raise UsageError(
            f"{name!r} cannot name a run: the name becomes a folder in {runs_dir}",
            f"--name {name.strip('./').replace('/', '-') or 'run'}   (another place: --set train.runs=FOLDER)",
        )
    if (path / "config.yaml").exists():
        raise UsageError(
            f"run {name} already exists in {runs_dir}",
            "pipeline train --resume   (continues it; --name starts another)",
        )
    make_folder(path, "train.runs")
    settings = dump_yaml(dict(config)).encode()
    made_with = sealed_bytes({**provenance, "config_sha256": hashlib.sha256(settings).hexdigest()})
    for name, data in ((PROVENANCE, made_with), (CONFIG, settings)):
        for file in (copy_of(path / name), path / name):
            write_file(file, [data])
    for folder in (path, path.parent, path.parent.absolute().parent):
        sync_folder(folder)
    return Run(path, dict(config))


def copy_of(file: Path) -> Path:
    """The second copy of a file that follows from nothing else."""
    return file.with_name(f".{file.name}.copy")


def open_run(path: Path | str, allow_incomplete: bool = False) -> Run:
    """An existing run.

    Raises:
        DataError: the folder is not a run, its settings are damaged, or (unless `allow_incomplete`) it is not finished.
    """
    path = Path(path)
    if not (path / CONFIG).exists():
        if copy_of(path / CONFIG).exists():
            raise DataError(f"{path / CONFIG} is missing", command("verify", path, "--repair"))
        raise DataError(f"{path} is not a run (no {CONFIG})", command("status"))
    settings = read_file(path / CONFIG)
    expected = checked(Provenance, read_sealed(path / PROVENANCE), path / PROVENANCE)["config_sha256"]
    if hashlib.sha256(settings).hexdigest() != expected:
        raise DataError(
            f"{path / CONFIG} is not the file that the run was started with", command("verify", path, "--repair")
        )
    try:
        run = Run(path, parse_mapping(settings, path / CONFIG))
    except ConfigError as error:
        raise DataError(error.message, command("verify", path, "--repair")) from None
    if not run.complete and not allow_incomplete:
        reached = run.checkpoints()
        where = f"its last checkpoint is {reached[-1].name}" if reached else "it has no checkpoint yet"
        raise DataError(f"run {run.name} is not finished: {where}", resume_command(run))
    return run


def resume_command(run: Run) -> str:
    """The command that continues a run: `pipeline train`, or `pipeline tune` for one that tunes another."""
    return command("tune" if "tune" in run.config else "train", "-c", run.path, "--resume")


def fvu_label(evaluated_on: str | None) -> str:
    """Label of a final FVU by its rows (`evaluated_on` of a summary), to tell it from the FVU of a report."""
    return {"heldout": "held-out FVU", "train": "FVU, trained-on rows"}.get(str(evaluated_on), "FVU")


def sweep(folder: Path) -> None:
    """Delete the leftovers of an interrupted writer from a checkpoint folder."""
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover)


def remove_folder(folder: Path) -> None:
    """Removes a folder: first its name, so that a half-removed one is never taken for a whole one."""
    aside = folder.with_name(f".{folder.name}.removed")
    if aside.exists():
        shutil.rmtree(aside)
    folder.rename(aside)
    sync_folder(folder.parent)
    shutil.rmtree(aside)
