"""The time of a coder's own steps: the host's on a CPU, the device's on a CUDA device (events stood in for)."""

from __future__ import annotations

import time

import pytest
import torch

from sparse_pipeline.train.step.clock import StepClock


def test_on_a_cpu_it_is_the_time_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.5, 20.0, 22.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    watch = StepClock(torch.device("cpu"), seconds=3.0)
    with watch.running():
        pass
    with pytest.raises(ValueError, match="stop"), watch.running():
        raise ValueError("stop")
    assert watch.seconds == 5.5


class Event:
    """A device on which every event is reached one millisecond after the one before."""

    made = 0
    waited: list[int]

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str) -> None:
        assert stream == "current"
        Event.made += 1
        self.at = Event.made

    def synchronize(self) -> None:
        Event.waited.append(self.at)

    def elapsed_time(self, end: Event) -> float:
        return float(end.at - self.at)


def test_on_a_device_it_is_the_time_between_events_and_old_ones_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Event.waited = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    watch = StepClock(torch.device("cuda"), seconds=1.0, unread=3)
    for _ in range(5):
        with watch.running():
            pass
    assert Event.waited == [2, 4], "the two oldest; the host does not wait for the newest three"
    assert watch.seconds == pytest.approx(1.005)
    assert watch.seconds == pytest.approx(1.005)
