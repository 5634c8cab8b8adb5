"""The device that a setting names, for stages that only read a coder."""

from __future__ import annotations

import torch

from .errors import UsageError


def device_named(name: str, setting: str) -> str:
    """Its name; `auto` is CUDA if available. Raises UsageError where CUDA is named and not found.

    Args:
        setting: that holds the name, such as analyze.device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"{setting} is {name}, but no CUDA device was found", f"--set {setting}=cpu")
    return name
