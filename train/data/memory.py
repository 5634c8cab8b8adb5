"""How much memory the data path may take, and how large a pool that allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...shared.errors import UsageError
from .config import DataConfig

MAX_AUTO_ROWS = 1 << 20
"""Largest window where the settings name none."""

SHARE = 0.5
"""Share of the free memory that the pools may take where `memory_gb` is null."""

WHOLE_SHARE = 0.8
"""Share of it that all rows may take, which then are neither read nor held twice."""

Reading = Literal["mapped", "memory", "pools"]
"""Where rows lie when batches are drawn from them: in their mapped files, all of them in memory, or in pools."""


@dataclass(frozen=True)
class PoolSize:
    """What is kept in memory.

    Attributes:
        window_rows: rows drawn from at a time. Determines the order of the rows.
        reading: where the rows lie. Affects speed only.
    """

    window_rows: int
    reading: Reading

    @property
    def whole(self) -> bool:
        """Whether all rows are within reach at all times."""
        return self.reading != "pools"


def choose_pool(config: DataConfig, total_rows: int, row_bytes: int, free: int, *, on_device: bool) -> PoolSize:
    """Decides where the rows lie, and the window, from the settings and the memory that is free.

    Args:
        total_rows: rows of all blocks that training reads.
        row_bytes: bytes of a row over all needed sites.
        free: bytes free where the batches lie.
        on_device: they lie on a device, not in the host's memory.

    Raises:
        UsageError: `resident: mapped` with a device.
    """
    if config.resident == "mapped" and on_device:
        raise UsageError(
            "train.data.resident: mapped files are drawn from on a CPU; a device reads blocks of them into its memory",
            "--set train.data.resident=auto",
        )
    limit = None if config.memory_gb is None else int(config.memory_gb * 1e9)
    fits = total_rows * row_bytes <= (int(free * WHOLE_SHARE) if limit is None else limit)
    reading: Reading = "pools"
    if config.resident == "mapped" or (config.resident == "auto" and fits and not on_device):
        reading = "mapped"
    elif config.resident is True or (config.resident == "auto" and fits):
        reading = "memory"
    if config.pool_rows is not None:
        return PoolSize(config.pool_rows, reading)
    # not "all rows if they fit": where memory suffices, the order must not depend on how much of it there is
    budget = int(free * SHARE) if limit is None else limit
    affordable = budget // (row_bytes * (1 + config.prefetch)) if reading == "pools" else MAX_AUTO_ROWS
    return PoolSize(max(config.block_rows, min(MAX_AUTO_ROWS, affordable)), reading)
