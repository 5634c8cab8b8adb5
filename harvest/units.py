"""Units: sequences that are computed together, and the first of the shards that they fill.

Where a cache grew, its last shard stayed partly filled and the new data begin at the next shard. A unit never crosses
such a place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..shared.cache import CacheWriter
from ..shared.cache.reader import read_sequences
from .data.pack import Block

Unit = tuple[int, Block]
"""The first shard, and the sequences."""


def dataset_units(
    blocks: Iterable[Block], segments: Sequence[int], unit_shards: int, seqs_per_shard: int
) -> Iterator[Unit]:
    """The dataset's blocks as units; each block but the last has the size of a unit.

    Args:
        segments: numbers of sequences, ascending, after which the cache grew and data begin at a new shard.
    """
    # `done` sequences have been yielded; they fill or close the shards before `shard`, and `held` continues them.
    # `ends` are the segments after `done`: a unit that would cross the first is cut there, its shard partly filled.
    shard = done = 0
    held: Block | None = None
    ends = list(segments)
    for block in blocks:
        held = block if held is None else _joined(held, block)
        while held is not None:
            while ends and ends[0] <= done:
                ends.pop(0)
            size = unit_shards * seqs_per_shard
            if ends:
                size = min(size, ends[0] - done)
            if len(held) < size:
                break
            yield shard, replace(held[:size], documents=held.documents)
            shard, done = shard + -(-size // seqs_per_shard), done + size
            held = held[size:] if len(held) > size else None
    if held is not None:
        yield shard, held


def stored_units(writer: CacheWriter, unit_shards: int) -> Iterator[Unit]:
    """Units read from the cache itself: those in which a shard lacks a site."""
    missing = set(writer.missing_shards())
    for shards in writer.parts.units(unit_shards):  # as in dataset_units
        if not missing.isdisjoint(shards):
            found = [read_sequences(writer.path, writer.parts, shard) for shard in shards]
            whole = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
            yield shards.start, Block(whole["tokens"], whole["doc_id"], whole["pos_in_doc"], whole["flags"])


def _joined(a: Block, b: Block) -> Block:
    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(a, name), getattr(b, name)])

    return Block(
        both("tokens"), both("doc_id"), both("pos_in_doc"), both("flags"), documents=(*a.documents, *b.documents)
    )
