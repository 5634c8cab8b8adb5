"""Repairs a run: settings from their copies; damaged checkpoints and results dropped, so that training resumes."""

from __future__ import annotations

from pathlib import Path

from ..cache.files import sync_folder, write_file
from ..cache.repair import RepairReport
from ..console import Console
from ..errors import DataError, command
from .folder import CONFIG, Run, open_run, remove_folder, resume_command
from .records import written_again, wrong_records
from .verify import Damage, verify_run


def repair_run(path: Path, console: Console | None = None) -> RepairReport:
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
            return RepairReport(path, found, (), (), (), lost)
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
    if damage.explanations:
        again += ("the explanations",)
    step = command("explain", path) if damage.explanations else None
    step = step if run.complete else resume_command(open_run(path, allow_incomplete=True))
    return RepairReport(path, found, tuple(damage.write), tuple(dropped), again, step)


def _to_drop(run: Run, damage: Damage) -> list[Path]:
    """Damaged checkpoints; final/ if it, or anything it vouches for, is damaged; and where metrics or logs are, every
    checkpoint that was saved with more of them than is sound."""
    dropped = list(damage.checkpoints)
    if damage.records:
        dropped += [one for one in run.checkpoints() if one not in dropped and not _sound_before(run, one)]
        if len(dropped) == len(run.checkpoints()):
            dropped += damage.records
    dropped += damage.samples + damage.explanations
    if (damage.final or damage.records or damage.samples) and (run.path / "final").exists():
        dropped.append(run.path / "final")
    return [one for one in dict.fromkeys(dropped) if one.exists() or one.is_symlink()]


def _sound_before(run: Run, folder: Path) -> bool:
    try:
        saved = run.load_checkpoint(folder)
    except DataError:
        return False
    return saved is not None and all(written_again(name) for name in wrong_records(run.path, saved.files))
