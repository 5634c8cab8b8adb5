"""Sparse coders: one architecture per file, one line here each.

To add one: a file with a frozen config dataclass (`architecture: Literal["name"]`) and a `Coder`, and its line in
ARCHITECTURES.
"""

from __future__ import annotations

from .base import Coder, CoderConfig
from .codes import Codes, Entries
from .io import load_coder, save_coder
from .registry import ARCHITECTURES, AnyCoderConfig, build_coder

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
