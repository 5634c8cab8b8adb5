"""Signals that request a stop, and a time limit that sends one: training and harvest save what they have, and end."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def stop_signals() -> tuple[signal.Signals, ...]:
    """Ctrl-C, a scheduler's SIGTERM, and the SIGHUP of a terminal that closes, unless it is ignored (nohup)."""
    stops = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        stops.append(signal.SIGHUP)
    return tuple(stops)


def seconds_of(text: str) -> float:
    """A duration: `90s`, `45m`, `2h30m`, `1d`; a plain number is seconds.

    Raises:
        UsageError: it is none, or not positive.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    whole = "".join(number + unit for number, unit in parts)
    total = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
    if whole != text or not 0 < total < 1e8:
        raise UsageError(f"--time-limit {text!r} is no duration", "--time-limit 2h30m")
    return total


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Sends this process SIGTERM after so many seconds: whatever a scheduler's SIGTERM does, happens."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
