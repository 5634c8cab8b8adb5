"""A batch of rows: activations and everything that is known about each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B rows of a cache; every tensor lies on one device.

    Attributes:
        acts: site → [B, d] in the cache's logical dtype.
        tokens: [B] int32 token ids.
        position: [B] int32 position in the sequence, 0 for every BOS row: :func:`shared.cache.positions`.
        pos_in_doc: [B] int32 position in the document.
        doc_id: [B] int64 document.
        flags: [B] uint8 shared.cache.Flag bits.
        row: [B] int64 row in the cache, sequence · ctx + place in the sequence.
    """

    acts: Mapping[str, Tensor]
    tokens: Tensor
    position: Tensor
    pos_in_doc: Tensor
    doc_id: Tensor
    flags: Tensor
    row: Tensor

    def __len__(self) -> int:
        return len(self.row)
