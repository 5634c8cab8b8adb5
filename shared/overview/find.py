"""Finds caches and runs by folder or by name, and reads the settings frozen into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..cache.format import ARRAYS, MANIFEST, PLAN
from ..cache.growth import plan_files, read_head
from ..cache.locate import locate
from ..cache.mirror import at_hand, home
from ..config.registry import did_you_mean
from ..errors import DataError, PipelineError, UsageError, command, repair_command
from ..objects.address import is_address, spelled
from ..runs.folder import Run, open_run


def kind_of(path: Path) -> str | None:
    """ "cache" or "run", by the files in the folder, or a cache's objects in a bucket; None for any other."""
    path = at_hand(path)
    if (path / PLAN).is_file() or (path / MANIFEST).is_file() or (path / ARRAYS).is_dir():
        return "cache"
    if (path / "config.yaml").is_file() or (path / "final").is_dir() or (path / "checkpoints").is_dir():
        return "run"
    return None


def named(path: Path, *folders: Path) -> Path:
    """The folder of a cache or run, given as a path or as a name in one of `folders`.

    When nothing is found: the path unchanged, or for a bare name that name in the last of `folders`, so that the
    caller's error shows where it was expected.
    """
    places = [folder / path for folder in folders]
    if is_address(path):
        return path
    missing = path if path.exists() or len(path.parts) > 1 else places[-1]
    return next((found for found in (path, *places) if kind_of(found)), missing)


def folder_bytes(path: Path) -> int:
    """Total size of the files below a folder, in bytes. Files deleted during the count (temporary ones) count 0."""
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return total


def frozen_settings(path: Path) -> dict[str, Any]:
    """The settings that produced a cache or run, in the form of a settings file.

    Raises:
        UsageError: the folder is neither a cache nor a run.
    """
    kind, place, path = kind_of(path), home(path), at_hand(path)
    if kind == "cache":
        plans = plan_files(path)
        if not plans:
            raise DataError(f"{path / PLAN} is missing", repair_command(path))
        plan = read_head(plans[-1])
        config = plan["config"]
        if "imported" in config:
            raise UsageError(
                f"-c {spelled(place)}: the cache was imported, no harvest made it", f"pipeline inspect {path}"
            )
        settings = {**config.get("harvest", {}), "cache_dir": spelled(place.parent), "name": place.name}
        manifest = read_head(path / MANIFEST) if (path / MANIFEST).is_file() else {}
        if manifest.get("extra", {}).get("skipped_rows") or plan.get("provenance", {}).get("on_bad_row") == "skip":
            settings["on_bad_row"] = "skip"
        return {"harvest": settings}
    if kind == "run":
        run = open_run(path, allow_incomplete=True)
        if "tune" in run.config:
            return {"tune": _settings_of_tuned(run)}
        return {"train": _settings_of_run(run)}
    raise UsageError(f"-c {path}: the folder is neither a cache nor a run", "pipeline status   (lists caches and runs)")


def _settings_of_tuned(run: Run) -> dict[str, Any]:
    """The settings of a tuned run as they continue this folder; the run that it tunes may have moved with it."""
    settings: dict[str, Any] = {**run.config["tune"], "name": run.path.name}
    parent = Path(settings["run"])
    beside = run.path.parent / parent.name
    return {**settings, "run": str(parent if parent.exists() or not beside.exists() else beside)}


def _settings_of_run(run: Run) -> dict[str, Any]:
    """The settings of a run as they continue this folder, moved or renamed, on the cache of the run, wherever it is."""
    path = run.path
    settings = {**run.config, "runs": str(path.parent)}
    named_by_settings = run.config.get("name") or run.config.get("variant")
    if path.name != (named_by_settings or run.config.get("coder", {}).get("architecture")):
        settings["name"] = path.name
    if run.config.get("cache") is not None:
        identity = run.provenance.get("cache", {}).get("identity")
        settings["cache"] = str(locate(Path(run.config["cache"]), identity, path))
        beside = run.provenance.get("cache", {}).get("beside", ())
        settings["beside"] = [str(locate(Path(one["path"]), one.get("identity"), path)) for one in beside]
    return settings


def run_paths(names: Sequence[str], folder: Path, warn: Callable[[str], None] = lambda text: None) -> list[Path]:
    """Run folders from paths or names in `folder`; without names, every finished run in `folder`.

    Args:
        warn: told of each run that is damaged, and left out.

    Raises:
        DataError: a name is not found, or there is no finished run.
    """
    if names:
        return [Path(name) if Path(name).is_dir() else _below(name, folder) for name in names]
    found = []
    for path in sorted(path for path in folder.glob("*/") if kind_of(path) == "run"):
        try:
            run = open_run(path, allow_incomplete=True)
            if run.complete:
                run.load_coder()
                found.append(path)
        except PipelineError as error:
            warn(f"left out, since it is damaged: {error.message} ({command('verify', path, '--repair')})")
    if not found:
        raise DataError(f"no finished run in {folder}", "pipeline train")
    return found


def _below(name: str, folder: Path) -> Path:
    if (folder / name).is_dir():
        return folder / name
    known = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    raise DataError(f"no run {name!r} in {folder}{did_you_mean(name, known)}", "pipeline status")


def refuse_nothing_to_resume(paths: Sequence[Path]) -> None:
    """Raises DataError if none of the folders holds a run."""
    if any(kind_of(path) == "run" for path in paths):
        return
    folder = paths[0].parent
    known = sorted(path.name for path in folder.glob("*/") if kind_of(path) == "run")
    listed = f"; the runs there: {', '.join(known)}" if known else ""
    one = folder / (known[0] if len(known) == 1 else "RUN")
    raise DataError(
        f"--resume: there is no run {', '.join(path.name for path in paths)} in {folder}{listed}",
        f"pipeline train -c {one} --resume   (or the same command without --resume begins one)",
    )
