"""The rows of a cache that examples come from, as one text: where a window may reach, and which half a row is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..shared.cache import Cache
from ..shared.cache.rows import rest_rows
from ..shared.cache.vocabulary import Vocabulary
from ..shared.hashing import mix

HALF = np.uint64(0xE8)
FEW_DOCUMENTS = 20
"""With fewer documents, sequences are split in their place."""


@dataclass(frozen=True)
class Text:
    """R rows of whole sequences. All numbers of rows here count from the first of these rows.

    Attributes:
        tokens: [R].
        counts: [R] rows that count: neither padding nor at position 0.
        first, stop: [R] of each row that counts, the stretch of such rows around it, within its sequence.
        learn: [R] the row's document is one that labels are learned from; the others score them.
        vocabulary: of the cache's tokenizer.
    """

    tokens: NDArray[np.int64]
    counts: NDArray[np.bool_]
    first: NDArray[np.int64]
    stop: NDArray[np.int64]
    learn: NDArray[np.bool_]
    vocabulary: Vocabulary

    @classmethod
    def of(cls, cache: Cache, shards: Sequence[int]) -> Text:
        """The rows of some shards, in order."""
        sequences = _sequences(cache, shards)
        counts = counting_rows(cache, shards)
        row = np.arange(len(counts))
        border = (row % cache.ctx == 0) | ~counts
        border[1:] |= ~counts[:-1]
        starts = np.flatnonzero(border)
        run = np.cumsum(border) - 1
        stops = np.append(starts[1:], len(counts))
        documents = cache.doc_id[sequences].reshape(-1).astype(np.uint64)
        if len(np.unique(documents[counts])) < FEW_DOCUMENTS:
            documents = np.repeat(sequences, cache.ctx).astype(np.uint64)
        learn = (mix(documents ^ (HALF << np.uint64(32))) >> np.uint64(17)) & np.uint64(1) == 0
        tokens = cache.tokens[sequences].reshape(-1).astype(np.int64)
        return cls(tokens, counts, starts[run], stops[run], learn, Vocabulary.of(cache))

    def bounds(
        self, peaks: NDArray[np.int64], *, before: int, after: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First row and the row after the last of the window around each peak."""
        return np.maximum(self.first[peaks], peaks - before), np.minimum(self.stop[peaks], peaks + after + 1)

    def pieces(self, start: int, stop: int) -> tuple[str, ...]:
        """The tokens of a window as text."""
        return tuple(self.vocabulary.pieces(self.tokens[start:stop].tolist()))


def counting_rows(cache: Cache, shards: Sequence[int]) -> NDArray[np.bool_]:
    """Rows of some shards, in order, that are neither padding nor at position 0."""
    return rest_rows(cache.flags[_sequences(cache, shards)], cache.ctx).reshape(-1)


def _sequences(cache: Cache, shards: Sequence[int]) -> NDArray[np.int64]:
    spans = [cache.layout.seqs_of(shard) for shard in shards]
    return np.concatenate([np.arange(span.start, span.stop) for span in spans])
