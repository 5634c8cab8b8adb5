"""Where the time of a harvest goes, measured in its main loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

STAGES = ("tokenise", "forward", "copy", "write")


class Stages:
    """Seconds that the main loop spent on, or waiting for, each stage; work that overlaps another stage counts nothing.

    ``tokenise``: waiting for the next sequences. ``forward``: the model. ``copy``: copying activations to host memory,
    excluding copies that run beside the model. ``write``: waiting for the disk to free a buffer.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Counts the time of the block as the stage's."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def move(self, seconds: float, source: str, target: str) -> None:
        """Counts time measured within one stage as another's."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    def shares(self) -> dict[str, float]:
        """Stage → its share of the time, from 0 to 1; zeros before anything was timed."""
        total = sum(self.seconds.values())
        return {stage: seconds / total if total else 0.0 for stage, seconds in self.seconds.items()}

    def fields(self) -> dict[str, str]:
        """The shares as text, for a progress line."""
        return {stage: f"{share:.0%}" for stage, share in self.shares().items()}
