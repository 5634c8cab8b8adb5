"""Repairs a cache: writes again what follows from other files, and drops what a harvest must compute again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..console import Console, count
from ..errors import UsageError, command
from ..objects.address import settled
from .files import sync_folder, write_file
from .format import MANIFEST
from .lock import WriterLock
from .mirror import mirror_of, shown
from .verify import VerifyReport, verify_cache


class Verified(Protocol):
    """What a verification found, of a cache or a run."""

    @property
    def ok(self) -> bool: ...
    @property
    def lasting(self) -> bool: ...
    @property
    def complete(self) -> bool: ...
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class RepairReport:
    """What a repair did.

    Attributes:
        path: the cache or run.
        found: the damage.
        written: files that follow from others, written again.
        dropped: files that were deleted.
        again: what the next command computes, in words.
        next: that command; None if nothing is left to do.
    """

    path: Path
    found: Verified
    written: tuple[Path, ...]
    dropped: tuple[Path, ...]
    again: tuple[str, ...]
    next: str | None

    @property
    def ok(self) -> bool:
        """Whether nothing is left that cannot be repaired."""
        return not self.found.lasting

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


def repair_cache(
    path: Path | str,
    console: Console | None = None,
    further: Callable[[VerifyReport], VerifyReport] = lambda report: report,
) -> RepairReport:
    """Verifies a cache and repairs what it finds; the next harvest ends with the bytes of an undamaged cache.

    Args:
        further: adds what else was found (harvest.check).

    Raises:
        DataError: as :func:`shared.cache.verify.verify_cache`.
        UsageError: the cache lies in a bucket.
        PipelineError: a harvest is writing the cache.
    """
    if mirror_of(path) is not None:
        raise UsageError(
            f"--repair drops files, and {shown(path)} lies in a bucket, where another writer may be at work",
            f"{command('verify', shown(path))} names what is damaged, and what to delete",
        )
    path = settled(Path(path))
    lock = WriterLock(path)
    try:
        found = further(verify_cache(path, console))
        written, dropped = [], []
        for problem in found.problems:
            if problem.write is not None and not problem.lasting:
                _remove(problem.path, unless_file=True)
                problem.path.parent.mkdir(parents=True, exist_ok=True)
                write_file(problem.path, [problem.write])
                written.append(problem.path)
            dropped += [file for file in problem.drop if file.is_symlink() or file.exists()]
        for file in (dropped := list(dict.fromkeys(dropped))):
            _remove(file)
        for folder in {file.parent for file in (*written, *dropped)}:
            sync_folder(folder)
    finally:
        lock.release()
    again = _again(path, found)
    step = command("harvest", "-c", path) if again or not found.complete else None
    return RepairReport(path, found, tuple(written), tuple(dropped), again, step)


def _again(path: Path, found: VerifyReport) -> tuple[str, ...]:
    shards = {problem.shard for problem in found.problems if problem.shard is not None}
    lacking = sum(problem.missing for problem in found.problems)
    words = [count(len(shards) + lacking, "shard")] if shards or lacking else []
    words += [problem.path.name for problem in found.problems if problem.beside]
    if any(path / MANIFEST in problem.drop for problem in found.problems):
        words.append("the manifest, from the commits and one pass over the rows")
    return tuple(dict.fromkeys(words))


def _remove(file: Path, unless_file: bool = False) -> None:
    """Removes a file, a link or a folder that stands in a file's place."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    elif not (unless_file and file.is_file() and not file.is_symlink()):
        file.unlink(missing_ok=True)
