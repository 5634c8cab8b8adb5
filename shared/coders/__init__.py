"""Sparse coders: one architecture per file, one line here each.

To add one: a file with a frozen config dataclass (`architecture: Literal["name"]`) and a `Coder`, and its line in
ARCHITECTURES.
"""

from __future__ import annotations

from shared.coders.base import Coder, CoderConfig
from shared.coders.codes import Codes, Entries
from shared.coders.io import load_coder, save_coder
from shared.coders.registry import ARCHITECTURES, AnyCoderConfig, build_coder

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
