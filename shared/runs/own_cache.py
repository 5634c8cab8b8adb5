"""The cache that a run was trained on: where it lies now, and whether it is still that one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cache import Cache
from ..cache.beside import open_recorded
from ..cache.locate import locate
from ..cache.mirror import at_hand, shown
from ..errors import DataError
from .folder import Run


def is_imported(final: Mapping[str, Any]) -> bool:
    """Whether a run came from elsewhere (`pipeline import`) and says nothing of its training."""
    return "imported" in final and "training" not in final


def own_cache_path(run: Run, setting: str | None = None) -> Path:
    """The folder of the cache that a run was trained on, found by its identity if it was moved.

    Args:
        setting: the one that names another cache, for the hint; None: there is none.

    Raises:
        DataError: the run names no cache, or the cache was not found.
    """
    known = run.final.get("cache") or {}
    if "path" not in known:
        raise DataError(
            f"run {run.name} does not name the cache that it was trained on",
            f"--set {setting}=PATH" if setting else "pipeline import PATH --cache CACHE   (gives an imported run one)",
        )
    path = locate(Path(known["path"]), known.get("identity"), run.path)
    if not at_hand(path).exists():
        elsewhere = f"; --set {setting}=PATH if it has moved" if setting else ""
        raise DataError(
            f"the cache of run {run.name} was not found: {shown(path)}",
            f"pipeline harvest   (writes it again{elsewhere})",
        )
    return path


def recorded_cache(known: Mapping[str, Any], run: Path) -> Cache:
    """The cache that a record (`Cache.record`) names, with those beside it, where it lies now: moved, or in a bucket.

    Args:
        known: `final["cache"]` of a run, or {}.
        run: the run's folder.

    Raises:
        DataError: the record names none, it was not found, or another is in its place. What a bucket answers as in
            `at_hand`.
    """
    if "path" not in known:
        raise DataError("it names no cache", "--cache PATH")
    path = locate(Path(known["path"]), known.get("identity"), run)
    if not at_hand(path).exists():
        raise DataError(f"its cache was not found: {shown(path)}", "--cache PATH")
    cache, recorded = open_recorded(known, run, path), known.get("identity")
    if recorded not in (None, cache.identity):
        raise DataError(
            f"another cache is in the place of its own, {shown(path)}: identity {cache.identity[:12]}…, expected "
            f"{str(recorded)[:12]}…",
            "--cache PATH",
        )
    return cache


def refuse_another(run: Run, cache: Cache, hint: str) -> None:
    """Raises DataError where the cache is not the one that the run was trained on."""
    trained_on = (run.final.get("cache") or {}).get("identity")
    if trained_on != cache.identity:
        raise DataError(
            f"run {run.name} was trained on a cache with identity {str(trained_on)[:12]}…, but {cache.path} now has "
            f"identity {cache.identity[:12]}…",
            hint,
        )
