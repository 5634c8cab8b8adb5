"""How long one coder's steps take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

UNREAD = 1000
"""Steps whose two events are kept until they are read; the device has long finished an older one."""


class StepClock:
    """Adds up the time of what runs inside `running`.

    On a CUDA device by events on its current stream: the host only queues work there, and whoever waits first would be
    charged for everybody's.

    Args:
        seconds: of earlier sittings.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device, self._seconds = device, seconds
        self._spans: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what runs inside."""
        if self._device.type == "cuda":
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            stream = torch.cuda.current_stream(self._device)
            begun.record(stream)
            try:
                yield
            finally:
                ended.record(stream)
                self._spans.append((begun, ended))
                self._read(UNREAD)
            return
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - began

    @property
    def seconds(self) -> float:
        """So far; waits for the device."""
        self._read(0)
        return self._seconds

    def _read(self, keep: int) -> None:
        while len(self._spans) > keep:
            begun, ended = self._spans.popleft()
            ended.synchronize()
            self._seconds += begun.elapsed_time(ended) / 1000
