"""One writer per cache, or one per rank of a group that writes it together."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
import time
from pathlib import Path

from ..errors import DataError, PipelineError
from .format import LOCK

_WAIT_SECONDS = 30.0


class WriterLock:
    """An advisory lock on ``<cache>/.lock``, held until :meth:`release` or the end of the process.

    A single writer holds it exclusively. Of several ranks, whichever comes first holds it exclusively while it sets up
    the folder, and writes into it how many ranks there are; then all ranks share it, and each also holds its own
    ``.lock-<rank>`` exclusively, so that no rank runs twice. A rank of another number of ranks is refused: it would own
    other shards. The kernel releases a lock (flock) when its process dies, even by kill -9: a lock can never be stale.
    """

    def __init__(self, folder: Path, rank: int = 0, world: int = 1) -> None:
        self.folder = folder
        self.shared = world > 1
        self._world = world
        self._rank_file = folder / f"{LOCK}-{rank}" if self.shared else None
        self._descriptors = [open_lock(folder / LOCK)]
        try:
            self.is_first = try_lock(self._descriptors[0], fcntl.LOCK_EX, folder / LOCK)
            if not self.is_first:
                if not self.shared:
                    raise self._busy(folder / LOCK)
                self._wait_shared()
            if self.is_first:  # what a group that was killed left is no longer true
                self._say_world()
                for leftover in folder.glob(f"{LOCK}-*"):
                    leftover.unlink(missing_ok=True)
            elif (found := self._said_world()) not in (0, world):
                raise PipelineError(
                    f"{self.folder} is being written by {found} processes, and this is one of {world}",
                    hint="wait until they end; then any number of processes may resume",
                )
            if self._rank_file is not None:
                self._descriptors.append(self._own(self._rank_file))
        except BaseException:
            self._close()
            raise

    def set_up_done(self) -> None:
        """Lets the other ranks in: the folder is set up."""
        # a lock is converted in two steps, so another rank may have become the first in between: it sets up again
        if self.shared and self.is_first:
            self._wait_shared()

    def alone(self) -> bool:
        """Whether every other rank has ended; then this one holds the lock exclusively, and else no more.

        Of ranks that end at the same time, the last one to ask is alone: each gives up its share before it asks.
        """
        if not self.shared:
            return True
        fcntl.flock(self._descriptors[0], fcntl.LOCK_UN)
        alone = try_lock(self._descriptors[0], fcntl.LOCK_EX, self.folder / LOCK)
        if alone:
            os.ftruncate(self._descriptors[0], 0)
        return alone

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
        while not try_lock(self._descriptors[0], fcntl.LOCK_SH, self.folder / LOCK):
            if time.monotonic() > deadline:
                raise self._busy(self.folder / LOCK)
            time.sleep(0.05)

    def _own(self, file: Path) -> int:
        """A descriptor of this rank's own lock, held. Raises PipelineError where another process holds it."""
        while True:
            descriptor = open_lock(file)
            if not try_lock(descriptor, fcntl.LOCK_EX, file):
                os.close(descriptor)
                raise self._busy(file)
            # the holder before removes the file when it ends: a lock on a removed file keeps nobody out
            if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
                return descriptor
            os.close(descriptor)

    def _say_world(self) -> None:
        os.ftruncate(self._descriptors[0], 0)
        if self.shared:
            os.pwrite(self._descriptors[0], f"{self._world}\n".encode(), 0)

    def _said_world(self) -> int:
        text = os.pread(self._descriptors[0], 20, 0).strip()
        return int(text) if text.isdigit() else 0

    def _busy(self, file: Path) -> PipelineError:
        return PipelineError(
            f"{self.folder} is being written by another process (it holds {file.name})",
            hint="wait until it ends, or choose another cache name",
        )


def open_lock(file: Path) -> int:
    """A descriptor of a lock file, created if it does not exist, never cut or followed through a link.

    Raises:
        DataError: the name is taken by a link, a folder or a pipe.
        PipelineError: the file cannot be created.
        OSError: the system has no descriptor, memory, … left.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(file, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise DataError(
                f"{file} is not a regular file, expected a lock file", shlex.join(["rm", "-r", str(file)])
            ) from None
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            raise
        raise PipelineError(
            f"{file} cannot be created: {error.strerror}", f"make {file.parent} writable, or choose another folder"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{file} is not a regular file, expected a lock file", shlex.join(["rm", str(file)]))
    return descriptor


def try_lock(descriptor: int, mode: int, file: Path) -> bool:
    """Whether the lock was free. Raises PipelineError where the filesystem has no locks."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
        raise PipelineError(
            f"the filesystem of {file} has no locks ({error.strerror}), so two writers could not be kept apart",
            "put harvest.cache_dir and train.runs on a local disk, or mount the filesystem with locks",
        ) from None
    return True
