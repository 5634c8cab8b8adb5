"""Settings of the data path: which rows are read, in which order, with how much memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How rows of the cache become batches. Two runs with the same settings, cache and sampler see the same batches."""

    batch_size: int = 1024
    """Rows in a batch."""
    epochs: int = 4
    """Passes over the training rows; the last incomplete batch is dropped."""
    tokens: int | None = None
    """Train on this many rows instead of whole epochs; null: use `epochs`."""
    heldout: float = 0.05
    """Share of the documents held out from training, chosen by a hash of the document id: the same for every seed."""
    seed: int = 0
    """Seed of the order of blocks and rows."""
    pool_rows: int | None = None
    """Rows shuffled at a time, uniformly; null: 2^20, or as many as the memory allows."""
    block_rows: int = 128
    """Consecutive rows read from disk at once; every epoch permutes all blocks."""
    workers: int = 8
    """Threads that read blocks."""
    prefetch: int = 1
    """Pools to read ahead during training; each takes the memory of a pool."""
    resident: Literal["auto", "mapped"] | bool = "auto"
    """Where the rows of the run's sites lie. mapped: in their files, memory-mapped (on a CPU). true: all of them in
    memory (with CUDA: on the device). false: pools, read from disk again in every epoch. auto: on a CPU mapped and with
    CUDA in memory, if all of them fit in 0.8 of what is free; else pools. Affects speed only."""
    nonfinite: Literal["refuse", "skip"] = "refuse"
    """Rows with an infinity or a NaN at the run's sites: refuse to train, or skip them in training, evaluation and
    every statistic; log and summary count them."""
    checksums: bool = True
    """Compare each chunk file with the checksum in its commit when a process first reads it, in the background."""
    memory_gb: float | None = None
    """Largest total memory of the rows, in GB; null: 0.8 of the free memory for all of them, half of it for pools."""

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
