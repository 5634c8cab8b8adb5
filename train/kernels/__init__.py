"""The training step as Triton kernels, for CUDA devices. Triton is optional: importing this package does not import it.

`TRITON_INTERPRET=1`, set before the first kernel is imported, runs the kernels in Triton's interpreter on a CPU: slow,
with the same arithmetic. The tests use it where there is no GPU.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch


def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on `device`, or None where they can."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install 'sparse-coder-pipeline[kernels]')"
    if device.type != "cuda":
        return None if interpreting() else f"the device is {device.type}, not cuda"
    if torch.version.hip is not None:
        return "the kernels are written for NVIDIA devices"
    if "CC" not in os.environ and not any(map(shutil.which, ("gcc", "clang"))):
        return "Triton finds no C compiler (gcc, clang or $CC) to build its launcher with"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} has no bfloat16 matrix products (compute capability below 8.0)"
    return None


def interpreting() -> bool:
    """Whether Triton's interpreter is requested (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"
