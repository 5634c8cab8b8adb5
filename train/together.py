"""`pipeline train --ranks N` and `pipeline sweep --ranks N`: N processes on this machine, each with runs of its own, or
all of them with every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..shared.console import Console
from ..shared.processes import run_together
from ..shared.ranks import Rank
from .config import TrainConfig
from .parts import state_of


def train_together(words: Sequence[str], n: int, configs: Sequence[TrainConfig], console: Console) -> None:
    """Trains runs with ``n`` processes: process i of them trains every n-th run from i on.

    A process that dies does not end the others. Each reads the cache for itself, so a run is the one that a single
    process trains, unless memory bounds the rows that are drawn from at a time (train.data.pool_rows).

    Args:
        words: the command, with everything but --ranks.
        configs: all runs.

    Raises: as run_together.
    """
    run_together(words, n, console, _Runs(configs, console))


def train_bound(words: Sequence[str], n: int, configs: Sequence[TrainConfig], console: Console) -> None:
    """Trains every run with ``n`` processes (`train.parallel`). A process that dies ends all; the runs stay at their
    last checkpoint.

    Args: as train_together.

    Raises: as run_together.
    """
    run_together(words, n, console, _Runs(configs, console, alike=True), bound=True)


@dataclass
class _Runs:
    """What the processes say; the runs' folders say how far they are.

    Attributes:
        alike: they all say the same, so the first speaks for all; otherwise each line comes with its process.
    """

    configs: Sequence[TrainConfig]
    console: Console
    alike: bool = False

    def hear(self, rank: Rank, line: str) -> None:
        if line.startswith(("error: ", "next: ", "interrupted")):
            return
        if not self.alike:
            self.console.info(f"[{rank.index}] {line}")
        elif not rank.index and not line.startswith("train: "):  # which the command itself has said
            self.console.info(line)

    def look(self) -> None:
        """Nothing to count: each process shows its own progress."""

    def kept(self) -> str:
        return "; ".join(f"{config.run_name} {state_of(config)}" for config in self.configs)
