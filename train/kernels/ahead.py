"""Numbers between a host that runs ahead of its device and the device, without either waiting for the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SLOTS = 64
"""Steps that the host may be ahead before it waits for a slot."""


class Ring:
    """Sends a few numbers to the device at every step, each time from another slot of pinned memory.

    A copy from ordinary memory makes the driver wait. A slot is written again only when its copy has ended.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, slots: int = _SLOTS) -> None:
        self._cuda, self._device = device.type == "cuda", device
        self._slots = torch.zeros(slots, size, dtype=dtype, pin_memory=self._cuda)
        self._sent: list[torch.cuda.Event | None] = [None] * slots
        self._next = 0

    def send(self, numbers: Sequence[float], to: Tensor) -> None:
        """Copy numbers into a tensor on the device, in the order of its stream."""
        slot, self._next = self._next, (self._next + 1) % len(self._sent)
        sent = self._sent[slot]
        if sent is not None:
            sent.synchronize()
        self._slots[slot] = torch.tensor(numbers, dtype=self._slots.dtype)
        to.copy_(self._slots[slot], non_blocking=True)
        if self._cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._sent[slot] = event


class Answer:
    """A count on the device, requested now and read some steps later."""

    def __init__(self, counted: Tensor) -> None:
        cuda = counted.is_cuda
        self._host = torch.zeros(1, dtype=torch.int64, pin_memory=cuda)
        self._host.copy_(counted.reshape(1), non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(counted.device))

    def read(self) -> int:
        """The count; waits only where it has not arrived yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._host.numpy()[0])
