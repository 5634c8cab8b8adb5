"""Where copies of objects lie on this machine, and how many bytes they may take.

Two variables of the environment decide: PIPELINE_MIRROR, the folder, and PIPELINE_MIRROR_BYTES, the most bytes of chunk
files there (``200GB``). By default the folder is in the user's own cache folder, and the bound is half of what its disk
has free besides the copies already there. What was used least recently goes first: a file's access time is its last
use, set here, whatever the filesystem's own policy is.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from ..errors import UsageError
from .address import Address

FOLDER = "PIPELINE_MIRROR"
BYTES = "PIPELINE_MIRROR_BYTES"

DOWNLOAD = ".download"
"""Suffix of a copy that is being written; it counts, and no eviction takes it from its writer."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_KEEP = 0.9
"""Share of the bound that an eviction leaves, so that it is not needed again at once."""


def mirror_root() -> Path:
    """The folder of all copies."""
    chosen = os.environ.get(FOLDER)
    if chosen:
        return Path(chosen).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "sparse-pipeline"


def folder_of(address: Address) -> Path:
    """The folder of the copies of one address."""
    return mirror_root() / address.scheme / address.bucket / address.key


class Room:
    """The chunk files below a folder, at most ``limit`` bytes of them; a process adds what it writes to what it found.

    Several processes may share the folder. Each looks at it again after a twentieth of the bound, so together they may
    exceed it by that much.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = threading.Lock()
        self._used: int | None = None
        self._since = 0

    @property
    def limit(self) -> int:
        """Bytes that the chunk files may take.

        Raises:
            UsageError: the variable of the environment is not a number of bytes.
        """
        text = os.environ.get(BYTES, "").strip()
        if not text:
            with self._guard:
                used = self._scan() if self._used is None else self._used
            return (_free(self.root) + used) // 2
        match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?)b?", text.lower())
        if match is None:
            raise UsageError(f"{BYTES}={text[:40]}: expected a number of bytes", f"export {BYTES}=200GB")
        return int(float(match[1]) * _UNITS[match[2]])

    def make(self, n_bytes: int) -> None:
        """Room for a file: removes what was used least recently if need be.

        Raises:
            UsageError: the file alone exceeds the bound.
        """
        limit = self.limit
        if n_bytes > limit:
            raise UsageError(
                f"one chunk file has {n_bytes:,} bytes, and {self.root} may hold {limit:,}",
                f"export {BYTES}={max(1, 8 * n_bytes // 10**9 + 1)}GB, or {FOLDER} to a folder of a larger disk",
            )
        with self._guard:
            if self._used is None or self._used + n_bytes > limit or self._since > limit // 20:
                self._used, self._since = self._scan(), 0
                if self._used + n_bytes > limit:
                    self._used = self._evict(max(0, int(_KEEP * limit) - n_bytes))
            self._used += n_bytes
            self._since += n_bytes

    def _files(self) -> list[tuple[int, int, Path]]:
        """(last use, bytes, file) of each chunk file."""
        found = []
        for folder, _, names in os.walk(self.root):
            if Path(folder).parent.name != "acts.zarr":
                continue
            for name in names:
                if name.startswith("c."):
                    with suppress(FileNotFoundError):
                        status = (file := Path(folder) / name).stat()
                        found.append((status.st_atime_ns, status.st_size, file))
        return found

    def _scan(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _evict(self, target: int) -> int:
        """Removes files until at most ``target`` bytes are left. Returns how many are. An open one stays readable."""
        files = sorted(self._files())
        left = sum(size for _, size, _ in files)
        for _, size, file in files:
            if left <= target:
                break
            if file.name.endswith(DOWNLOAD):
                continue
            file.unlink(missing_ok=True)
            left -= size
        return left


def touch(file: Path, descriptor: int) -> None:
    """Notes that a file was used now; what else is known of it stays."""
    import time

    status = os.fstat(descriptor)
    with suppress(OSError):
        os.utime(file, ns=(time.time_ns(), status.st_mtime_ns))


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
