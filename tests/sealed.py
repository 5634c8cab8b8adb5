"""Changes a sealed document as a program that writes wrong things would: with a right seal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_pipeline.shared.cache.files import SEAL, sealed_bytes


def reseal(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_bytes())
    value.pop(SEAL, None)
    change(value)
    file.write_bytes(sealed_bytes(value))


def flip(file: Path, at: int, bit: int = 4) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)
