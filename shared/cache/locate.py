"""Where a cache lies now: recognised by its identity, if it was moved or renamed since its path was recorded."""

from __future__ import annotations

from pathlib import Path

from ..errors import PipelineError
from ..objects.address import is_address
from .format import PLAN
from .growth import plan_files, read_head


def locate(path: Path, identity: str | None, run: Path) -> Path:
    """The path itself if there is a folder; else a cache of that identity beside it, or in a folder of the same name
    beside the run's folder or in the working directory. The path itself if there is none.

    Args:
        path: as recorded.
        identity: of the cache, in any of its generations.
        run: the run that recorded it.
    """
    if is_address(path) or path.exists() or identity is None:
        return path
    name = path.parent.name
    for folder in dict.fromkeys((path.parent, run.absolute().parent.parent / name, Path(name))):
        for plan in sorted(folder.glob(f"*/{PLAN}")):
            if identity in _identities(plan.parent):
                return plan.parent
    return path


def _identities(cache: Path) -> list[str]:
    """The identities of a cache, one for each generation; none if a plan cannot be read."""
    try:
        return [str(read_head(plan)["identity"]) for plan in plan_files(cache)]
    except PipelineError:
        return []
