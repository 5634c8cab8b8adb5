"""Sparse coders: one architecture per file, its settings in configs/, and one line in ARCHITECTURES (registry.py).

To add one: a frozen config dataclass (`architecture: Literal["name"]`), a `Coder`, and its line in ARCHITECTURES.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..lazy import lazily
from .configs.base import CoderConfig
from .registry import ARCHITECTURES, AnyCoderConfig, build_coder

if TYPE_CHECKING:
    from .base import Coder
    from .codes import Codes, Entries
    from .io import load_coder, save_coder

__all__ = [
    "ARCHITECTURES",
    "AnyCoderConfig",
    "Coder",
    "CoderConfig",
    "Codes",
    "Entries",
    "build_coder",
    "load_coder",
    "save_coder",
]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first used: settings need none of it."""
    return lazily(
        __name__, name, {"Coder": "base", "Codes": "codes", "Entries": "codes", "load_coder": "io", "save_coder": "io"}
    )
