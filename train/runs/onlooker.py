"""A run as all but the first of its processes see it: they read it, and write nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...shared.runs.folder import Checkpoint, Run
from ...shared.runs.records import Records

if TYPE_CHECKING:
    from torch import Tensor

    from ...shared.coders import Coder


class Onlooker(Run):
    """One run that another process writes. What would be written is dropped."""

    def write_note(self, note: Mapping[str, Any] | None) -> None:
        """Nothing."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def rewind_metrics(self, checkpoint: Checkpoint | None) -> None:
        """Nothing."""

    def save_checkpoint(
        self,
        step: int,
        coder_state: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Any],
        keep: int | None = None,
        files: Records | None = None,
    ) -> Path:
        """Nothing; returns the folder that the first process writes."""
        return self.path / "checkpoints" / f"step_{step:08d}"

    def save_average(self, coder: Coder, summary: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> None:
        """Nothing."""

    def write_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing; returns the record."""
        return dict(record)

    def finish(self, coder: Coder, summary: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """The first process holds it."""
        yield
