"""A file of arrays that are needed only during an analysis: appended to in the pass, mapped afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...shared.explain import naming


class ScratchFile:
    """Bytes in the order in which they were appended; the file is removed with this object.

    It may be sent to another process, which owns the file from then on.

    Args:
        folder: where it lies; made if it does not exist.
        name: what its name begins with.
    """

    def __init__(self, folder: Path, name: str) -> None:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(dir=folder, prefix=f"{name}-")
        os.close(handle)
        self.path = Path(path)
        self._cleanup = weakref.finalize(self, _remove, self.path)

    def __getstate__(self) -> Path:
        self._cleanup.detach()
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path
        self._cleanup = weakref.finalize(self, _remove, path)

    def append(self, *arrays: NDArray[Any]) -> None:
        """Write C-contiguous arrays at the end, one after the other."""
        with naming(self.path), self.path.open("ab") as file:
            for array in arrays:
                file.write(array.data)

    def take(self, other: ScratchFile) -> None:
        """Write the other's bytes at the end; its file is removed."""
        with naming(self.path), self.path.open("ab") as file, other.path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 24)
        other._cleanup()

    def mapped(self, dtype: DTypeLike) -> NDArray[Any]:
        """All of it [n].

        The mode is "c": nothing is written, but the array has the type of one in memory, so kernels compile once.
        """
        if not self.path.stat().st_size:
            return np.zeros(0, dtype)
        return np.asarray(np.memmap(self.path, dtype, "c"))


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
