"""The data path of training: block-shuffled, read ahead, resumable, with a held-out split by document."""

from __future__ import annotations

from shared.split import Split, split_rows
from train.data.config import DataConfig
from train.data.rows import heldout_batches, row_batches
from train.data.stream import Stream, StreamPlan, open_stream

__all__ = [
    "DataConfig",
    "Split",
    "Stream",
    "StreamPlan",
    "heldout_batches",
    "open_stream",
    "row_batches",
    "split_rows",
]
