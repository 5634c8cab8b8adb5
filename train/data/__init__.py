"""The data path of training: block-shuffled, read ahead, resumable, with a held-out split by document."""

from __future__ import annotations

from ...shared.cache.heldout import Split, split_rows
from .config import DataConfig
from .rows import row_batches
from .stream import Stream, StreamPlan, open_stream

__all__ = [
    "DataConfig",
    "Split",
    "Stream",
    "StreamPlan",
    "open_stream",
    "row_batches",
    "split_rows",
]
