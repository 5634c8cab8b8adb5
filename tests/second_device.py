"""A second device for tests on a machine that has none: tensors whose numbers lie in host memory, but which refuse to
meet a tensor of the host, as those of a GPU do.

What it finds: operators between the two devices, index tensors of the host on tensors of the device (which PyTorch
copies at every use), tensors that were never moved, `.numpy()` without `.cpu()`, and generators of the wrong device.
It also counts when the host reads from the device. The numbers are those of a CPU.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
"""Its name: of PyTorch's devices the one that needs no library, whose tensors would have no numbers."""

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount")
"""Operators whose result the host reads, or whose size depends on values."""

MOVES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")


class DevicesMixedError(Exception):
    """An operator got tensors of both devices."""


class Distant(Tensor):
    """A tensor of the second device; `near` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Distant:
        with torch.inference_mode(False):  # which knows no views of such tensors
            made: Distant = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, near.size(), near.stride(), near.storage_offset(), dtype=near.dtype, device=DEVICE
            )
        made.near = near
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Distant({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, Counter())


class SecondDevice(TorchDispatchMode):
    """Makes the device work. `reads` counts, by operator, when the host read from it."""

    def __init__(self, reads: Counter[str] | None = None) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter() if reads is None else reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, self.reads)


class _Made(TorchFunctionMode):
    """`torch.tensor` and `tolist`, by a copy between host and device: PyTorch has ways of its own for "meta" and for
    subclasses."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and str(kwargs.get("device")) == "meta":
            del kwargs["device"]
            return func(*args, **kwargs).to(DEVICE)
        if func is Tensor.tolist:
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


@contextmanager
def second_device() -> Iterator[SecondDevice]:
    """The device, while it works: in this thread and in those that are started meanwhile."""
    device, started = SecondDevice(), threading.Thread.run

    def run_with_it(thread: threading.Thread) -> None:
        with _Made(), SecondDevice(device.reads):
            started(thread)

    threading.Thread.run = run_with_it  # type: ignore[method-assign]
    try:
        with _Made(), device:
            yield device
    finally:
        threading.Thread.run = started  # type: ignore[method-assign]


def run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], reads: Counter[str]) -> Any:
    """Call one operator on the numbers of its arguments; its results lie where its arguments do."""
    name = func._schema.name
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = any(isinstance(x, Distant) for x in tensors)
    moves = name.startswith(MOVES)
    if there and not moves:
        refuse_mixed(name, tensors)
    if there and counts_as_read(name, args):
        reads[name] += 1
    wanted = kwargs.get("device")
    if there and name.startswith("aten::copy_") and not isinstance(args[0], Distant):
        reads[name] += 1
    if there and wanted is not None and wanted.type == "cpu":
        reads[name] += 1
    near_args, near_kwargs = tree_map_only(Distant, lambda x: x.near, (list(args), dict(kwargs)))
    if wanted is not None:
        near_kwargs["device"] = torch.device("cpu")
        there = wanted.type == "meta"
        if there and (generator := kwargs.get("generator")) is not None and generator.device.type == "cpu":
            raise DevicesMixedError(f"{name}: a generator of the host for a tensor of the device")
    if "pin_memory" in near_kwargs:
        near_kwargs["pin_memory"] = None
    result = func(*near_args, **near_kwargs)
    if name.startswith(("aten::_local_scalar_dense", "aten::equal")) or not there:
        return result
    if name.startswith("aten::copy_"):
        return args[0]
    wrapped = tree_map_only(Tensor, Distant, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def refuse_mixed(name: str, tensors: Sequence[Tensor]) -> None:
    """A number on the host, of no dimension, may meet tensors of a device; nothing else may."""
    if any(not isinstance(x, Distant) and x.dim() > 0 for x in tensors):
        raise DevicesMixedError(f"{name}: " + ", ".join(f"{tuple(x.shape)} on {x.device.type}" for x in tensors))


def counts_as_read(name: str, args: Sequence[Any]) -> bool:
    """Whether the host must wait for the operator's numbers."""
    if name.startswith("aten::index"):  # indexing by a mask: how many rows there are depends on it
        indices = args[1] if len(args) > 1 and isinstance(args[1], Sequence) else ()
        return any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)
    return name.startswith(READS)
