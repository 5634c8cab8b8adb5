"""How long one coder's steps take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

UNREAD = 1000
"""Steps whose two events are kept unread: the device has long finished an older one, so reading it does not wait."""


class StepClock:
    """Adds up the time of what runs inside `running`.

    On a CUDA device it is measured by events on the current stream: the host only queues work there, so on the host's
    clock the first of several coders to wait would be charged for the work of all.

    Args:
        seconds: measured before this process, when the run was resumed.
        unread: how many steps may lie between an event and its reading.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0, unread: int = UNREAD) -> None:
        self._device, self._seconds, self._unread = device, seconds, unread
        self._spans: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of what runs inside."""
        if self._device.type == "cuda":
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            stream = torch.cuda.current_stream(self._device)
            begun.record(stream)
            try:
                yield
            finally:
                ended.record(stream)
                self._spans.append((begun, ended))
                self._read(self._unread)
            return
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - began

    @property
    def seconds(self) -> float:
        """Seconds so far; waits for the device."""
        self._read(0)
        return self._seconds

    def _read(self, keep: int) -> None:
        while len(self._spans) > keep:
            begun, ended = self._spans.popleft()
            ended.synchronize()
            self._seconds += begun.elapsed_time(ended) / 1000
