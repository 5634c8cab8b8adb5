"""Checks a run: every file against what vouches for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache.files import read_file, read_sealed
from ..config.yaml import parse_mapping
from ..console import Console, count
from ..errors import ConfigError, DataError, command
from ..schemas import Provenance, checked
from .explanations import explanation_files, read_explanations
from .folder import CONFIG, PROVENANCE, Checkpoint, Run, copy_of
from .records import written_again, wrong_records
from .samples import load_samples, samples_summary


@dataclass
class Damage:
    """What of a run is damaged.

    Attributes:
        problems: a line for each.
        write: file → the content it must have, known from its copy.
        checkpoints: folders that are damaged.
        final: final/ is damaged.
        samples: files of samples/ that are damaged.
        explanations: files of explanations that are damaged: `pipeline explain` writes them again.
        records: metrics or logs that are damaged: what follows from them is computed again.
        lasting: config.yaml or provenance.json and its copy are damaged.
        imported: the run was imported: training cannot write its coder again.
    """

    problems: list[str] = field(default_factory=list)
    write: dict[Path, bytes] = field(default_factory=dict)
    checkpoints: list[Path] = field(default_factory=list)
    final: bool = False
    samples: list[Path] = field(default_factory=list)
    explanations: list[Path] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)
    lasting: bool = False
    imported: bool = False


@dataclass(frozen=True)
class RunReport:
    """Result of `verify_run`; `problems` holds one line for each damaged file."""

    path: Path
    complete: bool
    checkpoints: int
    tensors: int
    problems: list[str]
    damage: Damage = field(repr=False, default_factory=Damage)

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def lasting(self) -> bool:
        """Whether some of it cannot be repaired."""
        return self.damage.lasting

    @property
    def hint(self) -> str | None:
        """The command to run next."""
        if self.ok:
            return None
        return command("verify", self.path, "--repair")

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "ok": self.ok,
            "complete": self.complete,
            "checkpoints": self.checkpoints,
            "tensors": self.tensors,
            "problems": self.problems,
        }

    def __str__(self) -> str:
        state = "complete" if self.complete else "not finished"
        read = f"{count(self.checkpoints, 'checkpoint')}, {count(self.tensors, 'tensor')} read"
        head = f"{self.path}: {read}, {state}"
        return "\n".join([head, *self.problems, "ok" if self.ok else count(len(self.problems), "problem")])


def verify_run(path: Path, console: Console | None = None) -> RunReport:
    """Read every file: settings against their copies, tensors and records against the sha256 that vouches for them.

    Raises:
        DataError: the folder is not a run.
    """
    if not any((path / name).exists() for name in (CONFIG, copy_of(path / CONFIG).name, "checkpoints", "final")):
        raise DataError(f"{path} is not a run (no {CONFIG})", command("status"))
    damage = Damage()
    run = _opened(path, damage)
    if run is None:
        return RunReport(path, False, 0, 0, damage.problems, damage)
    folders = run.checkpoints()
    tensors, newest = 0, None
    with (console or Console(quiet=True)).progress(len(folders) + run.complete, "files", "verify") as progress:
        for folder in folders:
            try:
                checkpoint = run.load_checkpoint(folder)
            except DataError as error:
                damage.checkpoints.append(folder)
                damage.problems.append(error.message)
            else:
                newest = checkpoint
                tensors += len(checkpoint.coder) + len(checkpoint.optimizer) if checkpoint else 0
            progress.advance()
        if (path / "final").exists():
            tensors += _read_final(run, damage)
            progress.advance()
    _check_records(run, newest, damage)
    _check_explanations(run, damage)
    damage.lasting = damage.lasting or (damage.imported and damage.final)
    return RunReport(path, run.complete, len(folders), tensors, damage.problems, damage)


def _opened(path: Path, damage: Damage) -> Run | None:
    """The run, with its settings and provenance from whichever copies are sound."""
    good: dict[str, bytes] = {}
    expected: str | None = None
    for name in (PROVENANCE, CONFIG):
        for file in (path / name, copy_of(path / name)):
            try:
                if name == PROVENANCE:
                    found = checked(Provenance, read_sealed(file), file)
                    data = read_file(file)
                    expected = expected or str(found["config_sha256"])
                    damage.imported = "imported" in found
                else:
                    data = read_file(file)
                    if hashlib.sha256(data).hexdigest() != expected:
                        raise DataError(f"{file} is damaged: not the sha256 in {PROVENANCE}")
                if good.setdefault(name, data) != data:
                    raise DataError(f"{file} differs from its copy")
            except DataError as error:
                damage.problems.append(error.message)
                damage.write[file] = b""
    damage.lasting = len(good) < 2
    damage.write = {} if damage.lasting else {f: good[_named(f)] for f in damage.write}
    if damage.lasting:
        return None
    try:
        settings = parse_mapping(good[CONFIG], path / CONFIG)
    except ConfigError as error:
        damage.problems.append(error.message)
        damage.lasting = True
        return None
    return Run(path, settings)


def _named(file: Path) -> str:
    return file.name.removeprefix(".").removesuffix(".copy") if file.name.endswith(".copy") else file.name


def _read_final(run: Run, damage: Damage) -> int:
    """Number of tensors read from the finished coder; all must be finite."""
    try:
        state = run.load_coder().state_dict()
    except DataError as error:
        if run.complete or (run.path / "final" / "config.json").exists():
            damage.final = True
            damage.problems.append(error.message)
        return 0
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            damage.final = True
            damage.problems.append(f"{run.path / 'final'}: {name} holds an infinity or NaN")
    return len(state)


def _check_explanations(run: Run, damage: Damage) -> None:
    for file in explanation_files(run.path):
        try:
            read_explanations(file)
        except DataError as error:
            damage.explanations.append(file)
            damage.problems.append(error.message)


def _check_records(run: Run, newest: Checkpoint | None, damage: Damage) -> None:
    """Metrics, logs and samples: of a finished run as at its end, else as at its newest checkpoint."""
    files = None if newest is None else newest.files
    finished = run.complete and not damage.final
    if finished:
        files = run.final.get("files", {})
    written = {file.name for file in damage.write}
    for name in wrong_records(run.path, files or {}, final=finished):
        if name in written or (not finished and written_again(name)):
            continue
        damage.problems.append(f"{run.path / name} is damaged: not the sha256 recorded with the run")
        if name.startswith("final/"):
            damage.final = True
            continue
        (damage.samples if name.startswith("samples/") else damage.records).append(run.path / name)
    if damage.records or damage.samples:
        return
    try:
        run.metrics()
        if samples_summary(run.path) is not None:
            load_samples(run.path)
    except DataError as error:
        damage.problems.append(error.message)
        damage.records.append(run.path / "metrics.jsonl")
