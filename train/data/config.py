"""Settings of the data path: what is read, in which order, and with how much memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How rows of the cache become batches. Two runs with the same settings, cache and sampler see the same batches."""

    batch_size: int = 1024
    """Rows in a batch."""
    epochs: int = 4
    """Passes over the training rows; rows left over at the very end, fewer than a batch, are not used."""
    tokens: int | None = None
    """Train on this many rows instead of a number of epochs; the last epoch may be cut short. null: `epochs`."""
    heldout: float = 0.05
    """Share of the documents that training never sees; chosen by a hash of the document id, the same for every seed."""
    seed: int = 0
    """Decides the order of blocks and of rows."""
    pool_rows: int | None = None
    """Rows drawn from at a time: the shuffle is perfect within them. null: 2^20, or as many as the memory allows."""
    block_rows: int = 128
    """Rows read from disk in one piece; every epoch permutes all blocks."""
    workers: int = 8
    """Threads that read blocks."""
    prefetch: int = 1
    """Pools that are read ahead while one is trained on; each costs a pool's memory."""
    resident: Literal["auto"] | bool = "auto"
    """Keep all rows of the needed sites in memory (on the device, with CUDA): true, false, or auto (if they fit).
    Changes speed only, never the order."""
    memory_gb: float | None = None
    """Memory that the pools may take together. null: half of what is free when training starts."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "block_rows", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, found {getattr(self, name)}")
        if self.prefetch < 0 or self.seed < 0:
            raise ValueError(f"prefetch and seed cannot be negative, found {self.prefetch} and {self.seed}")
        if self.tokens is not None and self.tokens < self.batch_size:
            raise ValueError(f"tokens: {self.tokens} rows are fewer than one batch of {self.batch_size}")
        if self.pool_rows is not None and self.pool_rows < self.block_rows:
            raise ValueError(f"pool_rows: {self.pool_rows} is less than one block of {self.block_rows} rows")
        if not 0 <= self.heldout < 1:
            raise ValueError(f"heldout: a share in [0, 1), found {self.heldout}")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(f"memory_gb: must be positive, found {self.memory_gb}")
