"""Repairs a run: settings from their copies; damaged checkpoints and results dropped, so that training resumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache.files import sync_folder, write_file
from ..console import Console
from ..errors import DataError, command
from .folder import CONFIG, Run, remove_folder
from .records import wrong_records
from .verify import Damage, RunReport, verify_run


@dataclass(frozen=True)
class RunRepair:
    """What a repair did; attributes as in shared.cache.repair.RepairReport."""

    path: Path
    found: RunReport
    written: tuple[Path, ...]
    dropped: tuple[Path, ...]
    again: tuple[str, ...]
    next: str | None

    @property
    def ok(self) -> bool:
        """Whether nothing is left that cannot be repaired."""
        return not self.found.damage.lasting

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.found.to_dict(),
            "repaired": self.ok,
            "written": [str(file) for file in self.written],
            "dropped": [str(file) for file in self.dropped],
            "computed_again": list(self.again),
            "next": self.next,
        }

    def __str__(self) -> str:
        lines = [str(self.found)]
        lines += [f"written again: {file}" for file in self.written]
        lines += [f"dropped: {file}" for file in self.dropped]
        lines += [f"to compute again: {what}" for what in self.again]
        if self.found.ok:
            lines.append("nothing to repair")
        return "\n".join(lines)


def repair_run(path: Path, console: Console | None = None) -> RunRepair:
    """Verifies a run and repairs what it finds; resuming it ends with the bytes of an undamaged run.

    Raises:
        DataError: the folder is not a run.
        PipelineError: the run is being trained.
    """
    with Run(path, {}).lock():
        found = verify_run(path, console)
        damage = found.damage
        if damage.lasting:
            lost = f"write {path / CONFIG} again from the settings of the run: no sound copy is left"
            if damage.imported:
                lost = f"import the coder again: {path} was not trained here"
            return RunRepair(path, found, (), (), (), lost)
        for file, content in damage.write.items():
            if file.is_dir() and not file.is_symlink():
                remove_folder(file)
            write_file(file, [content])
        sync_folder(path)
        run = Run(path, {})
        dropped = _to_drop(run, damage)
        for one in dropped:
            remove_folder(one) if one.is_dir() and not one.is_symlink() else one.unlink(missing_ok=True)
            sync_folder(one.parent)
    left = run.checkpoints()
    again: tuple[str, ...] = ()
    if not run.complete:
        after = f"the steps after {left[-1].name.removeprefix('step_').lstrip('0') or '0'}" if left else "every step"
        again = (f"{after}, then the final evaluation",)
    step = None if run.complete else command("train", "-c", path, "--resume")
    return RunRepair(path, found, tuple(damage.write), tuple(dropped), again, step)


def _to_drop(run: Run, damage: Damage) -> list[Path]:
    """Damaged checkpoints; final/ if it, or anything it vouches for, is damaged; and where metrics or logs are, every
    checkpoint that was saved with more of them than is sound."""
    dropped = list(damage.checkpoints)
    if damage.records:
        dropped += [one for one in run.checkpoints() if one not in dropped and not _sound_before(run, one)]
        if len(dropped) == len(run.checkpoints()):
            dropped += damage.records
    dropped += damage.samples
    if (damage.final or damage.records or damage.samples) and (run.path / "final").exists():
        dropped.append(run.path / "final")
    return [one for one in dict.fromkeys(dropped) if one.exists() or one.is_symlink()]


def _sound_before(run: Run, folder: Path) -> bool:
    try:
        saved = run.load_checkpoint(folder)
    except DataError:
        return False
    return saved is not None and all(
        name.startswith(("samples/", "final/")) for name in wrong_records(run.path, saved.files)
    )
