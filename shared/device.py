"""The device that a setting names, for stages that only read a coder; and the way of host memory to a device."""

from __future__ import annotations

import torch
from torch import Tensor

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


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on the device, in the order of the current stream. The host does not wait for the device.

    A CUDA copy from ordinary memory would: it goes through a pinned copy, which PyTorch keeps until the device has read
    it.
    """
    device = torch.device(device)
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
