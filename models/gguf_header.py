"""The header of a GGUF file, checked before the library reads it: lengths in it are loops and allocations there."""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from ..shared.errors import UsageError

_MAGIC = b"GGUF"
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value → its bytes."""

_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4


def check_gguf(path: Path) -> None:
    """Raises UsageError where the header claims more than the file holds, or is none."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Header(data).check()
    except (OSError, ValueError, struct.error) as error:
        raise UsageError(f"{path} is not a whole GGUF file: {error}", hint="download it again") from None


class _Header:
    """Walks through the header. Raises ValueError, struct.error."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def check(self) -> None:
        if self._take(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        (version,) = struct.unpack("<I", self._take(4))
        if version not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3")
        tensors, values = self._number(), self._number()
        for _ in range(values):
            self._string()
            self._value(*struct.unpack("<I", self._take(4)))
        for _ in range(tensors):
            self._string()
            (dimensions,) = struct.unpack("<I", self._take(4))
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            shape = [self._number() for _ in range(dimensions)]
            self._take(4)
            # the strongest quantisation stores about a bit and a half of each number
            if math.prod(shape) > 16 * len(self._data) or self._number() > len(self._data):
                raise ValueError(f"a tensor of {shape} in a file of {len(self._data):,} bytes")

    def _value(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY and depth < 2:
            (inner,) = struct.unpack("<I", self._take(4))
            count = self._number()
            if inner in _SIZES:
                self._take(count * _SIZES[inner])
                return
            for _ in range(count):
                self._value(inner, depth + 1)
        elif kind in _SIZES:
            self._take(_SIZES[kind])
        else:
            raise ValueError(f"a value of type {kind}")

    def _string(self) -> None:
        self._take(self._number())

    def _number(self) -> int:
        return int(struct.unpack("<Q", self._take(8))[0])

    def _take(self, n_bytes: int) -> bytes:
        """The next bytes; of a long value only the place is moved on."""
        end = self._at + n_bytes
        if end > len(self._data):
            raise ValueError(f"it ends within its header ({len(self._data):,} bytes)")
        found = self._data[self._at : end] if n_bytes <= 8 else b""
        self._at = end
        return found
