"""How much memory the data path may take, and how large a pool that allows."""

from __future__ import annotations

from dataclasses import dataclass

from .config import DataConfig

MAX_AUTO_ROWS = 1 << 20
"""Largest window where the settings name none."""

SHARE = 0.5
"""Share of the free memory that the pools may take where `memory_gb` is null."""


@dataclass(frozen=True)
class PoolSize:
    """What is kept in memory.

    Attributes:
        window_rows: rows drawn from at a time. Determines the order of the rows.
        resident: all rows are read once and stay in memory. Affects speed only.
    """

    window_rows: int
    resident: bool


def choose_pool(config: DataConfig, total_rows: int, row_bytes: int, free: int) -> PoolSize:
    """Decides residency and window from the settings and the memory that is free.

    Args:
        total_rows: rows of all blocks that training reads.
        row_bytes: bytes of a row over all needed sites.
        free: bytes free where the pool will lie.
    """
    budget = int(config.memory_gb * 1e9) if config.memory_gb is not None else int(free * SHARE)
    fits = total_rows * row_bytes <= budget
    resident = fits if config.resident == "auto" else config.resident
    if config.pool_rows is not None:
        return PoolSize(config.pool_rows, resident)
    # not "all rows if resident": where memory suffices, the order must not depend on how much of it there is
    affordable = MAX_AUTO_ROWS if resident else budget // (row_bytes * (1 + config.prefetch))
    return PoolSize(max(config.block_rows, min(MAX_AUTO_ROWS, affordable)), resident)
