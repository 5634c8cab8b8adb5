"""One writer per cache, or one per rank of a group that writes it together."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from ..errors import PipelineError
from .format import LOCK

_WAIT_SECONDS = 30.0


class WriterLock:
    """An advisory lock on ``<cache>/.lock``, held until :meth:`release` or the end of the process.

    A single writer holds it exclusively. Of several ranks, whichever comes first holds it exclusively while it sets up
    the folder; then all ranks share it, and each also holds its own ``.lock-<rank>`` exclusively, so that no rank runs
    twice. The kernel releases a lock (flock) when its process dies, even by kill -9: a lock can never be stale.
    """

    def __init__(self, folder: Path, rank: int = 0, world: int = 1) -> None:
        self.folder = folder
        self.shared = world > 1
        self._rank_file = folder / f"{LOCK}-{rank}" if self.shared else None
        self._descriptors = [_open(folder / LOCK)]
        try:
            self.is_first = _try(self._descriptors[0], fcntl.LOCK_EX)
            if not self.is_first:
                if not self.shared:
                    raise self._busy(folder / LOCK)
                self._wait_shared()
            if self._rank_file is not None:
                self._descriptors.append(_open(self._rank_file))
                if not _try(self._descriptors[1], fcntl.LOCK_EX):
                    raise self._busy(self._rank_file)
        except BaseException:
            self._close()
            raise

    def set_up_done(self) -> None:
        """Lets the other ranks in: the folder is set up."""
        if self.shared and self.is_first:
            _try(self._descriptors[0], fcntl.LOCK_SH)

    def release(self) -> None:
        if self._descriptors and self._rank_file is not None:
            self._rank_file.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def _wait_shared(self) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not _try(self._descriptors[0], fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise self._busy(self.folder / LOCK)
            time.sleep(0.05)

    def _busy(self, file: Path) -> PipelineError:
        return PipelineError(
            f"{self.folder} is being written by another process (it holds {file.name})",
            hint="wait until it ends, or choose another cache name",
        )


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _try(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
