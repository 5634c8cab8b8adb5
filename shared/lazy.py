"""Names of a package that are imported when they are first used (PEP 562).

Settings are read by every command, and by most of them nothing else is: reading them must not import torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any


def lazily(package: str, name: str, homes: Mapping[str, str]) -> Any:
    """For a package's `__getattr__`: the attribute `name`, from the module below `package` that `homes` names.

    Raises:
        AttributeError: `homes` does not have the name.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{homes[name]}", package), name)
    setattr(sys.modules[package], name, found)  # the next use finds it in the package itself
    return found
