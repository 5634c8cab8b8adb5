"""One pass over a cache: every shard is read once, every coder encodes it once, every report sees the result.

Several coders share the read; a report is a collector (analyze/reports/base.py), and collectors merge, so disjoint
shards may be streamed by different processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shared.cache import Cache, positions
from ...shared.cache.rows import counted_rows
from ...shared.coders import Coder
from ...shared.codes.contexts import context_hashes
from ...shared.codes.sparse import SparseCodes
from ...shared.memory import rows_within

ENCODE_BYTES = 16 << 20
"""A coder's dense pre-activations [rows, F] are kept below this: rows are encoded in pieces, which caches hold."""

T = TypeVar("T")


@dataclass(frozen=True)
class ShardRows:
    """The R rows of a shard, which are whole sequences of ctx tokens.

    Attributes:
        shard: its number.
        start: the cache row of its first row.
        tokens, pos_in_doc, doc_id, flags: [R].
        keep: [R] rows that count: not padding, finite, and of the documents under analysis.
    """

    shard: int
    start: int
    ctx: int
    tokens: NDArray[np.int64]
    pos_in_doc: NDArray[np.int64]
    doc_id: NDArray[np.int64]
    flags: NDArray[np.uint8]
    keep: NDArray[np.bool_]
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def position(self) -> NDArray[np.int32]:
        """Position in the sequence, 0 at every BOS [R]."""
        return positions(np.arange(len(self)), self.flags, self.ctx)

    @cached_property
    def row(self) -> NDArray[np.int64]:
        """Row in the cache [R]."""
        return self.start + np.arange(len(self), dtype=np.int64)

    @cached_property
    def first(self) -> NDArray[np.bool_]:
        """Position 0, of the rows that count [R]."""
        rows: NDArray[np.bool_] = self.keep & (self.position == 0)
        return rows

    @cached_property
    def rest(self) -> NDArray[np.bool_]:
        """Every other row that counts [R]."""
        rows: NDArray[np.bool_] = self.keep & (self.position != 0)
        return rows

    def context(self, before: int) -> NDArray[np.uint64]:
        """A hash of each row's context with at most `before` tokens before its own [R] (shared.codes.contexts)."""

        def make() -> NDArray[np.uint64]:
            return context_hashes(self.tokens, self.flags, self.ctx, np.arange(len(self)), before)

        return self.once(("context", before), make)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What depends on these rows alone: made by the first caller, shared by every coder's reports."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made


def shard_rows(cache: Cache, shard: int, only: NDArray[np.bool_] | None = None) -> ShardRows:
    """The token arrays of one shard.

    Args:
        only: [n_rows] the cache's rows that count (padding never does); None: all.
    """
    seqs = cache.layout.seqs_of(shard)
    cut = slice(seqs.start, seqs.stop)

    def flat(array: NDArray[np.generic]) -> NDArray[np.int64]:
        return array[cut].reshape(-1).astype(np.int64)

    flags = cache.flags[cut].reshape(-1)
    keep = counted_rows(flags)
    if only is not None:
        keep &= only[seqs.start * cache.ctx : seqs.stop * cache.ctx]
    tokens, pos_in_doc, doc_id = flat(cache.tokens), flat(cache.pos_in_doc), flat(cache.doc_id)
    return ShardRows(shard, seqs.start * cache.ctx, cache.ctx, tokens, pos_in_doc, doc_id, flags, keep)


@dataclass(frozen=True)
class StreamBatch:
    """One shard through one coder.

    Attributes:
        rows: tokens and positions.
        codes: the active codes; rows that do not count are empty.
        y: [R, d_out] the target, as cached.
        y_hat: [R, d_out] float32 the reconstruction, zero in rows that do not count; None unless a report needs it.
    """

    rows: ShardRows
    codes: SparseCodes
    y: Tensor | None = None
    y_hat: Tensor | None = None


@dataclass(frozen=True)
class CoderSites:
    """A coder and the sites of the cache it reads and predicts; `reconstruct`: decode the codes too."""

    coder: Coder
    source: str
    target: str
    reconstruct: bool


def encode(source: CoderSites, x: Tensor, keep: NDArray[np.bool_]) -> tuple[SparseCodes, Tensor | None]:
    """(codes, reconstruction) of raw activations [R, d_in]; only the rows of `keep` are encoded."""
    coder = source.coder
    step = rows_within(4 * coder.n_latents, max(256, ENCODE_BYTES // (4 * coder.n_latents)))
    inside = None if keep.all() else torch.from_numpy(keep).to(x.device)
    if inside is not None:
        x = x[inside]
    parts, decoded = [], []
    with torch.inference_mode():
        for start in range(0, max(1, len(x)), step):
            piece = x[start : start + step]
            codes = coder.encode(piece)
            parts.append(codes)
            if source.reconstruct:
                decoded.append(coder.decode(codes, piece).float())
    sparse = SparseCodes.from_parts(parts, coder.n_latents, None if inside is None else keep)
    if not source.reconstruct:
        return sparse, None
    y_hat = torch.cat(decoded)
    if inside is not None:
        y_hat = y_hat.new_zeros(len(keep), y_hat.shape[1]).masked_scatter_(inside[:, None], y_hat)
    return sparse, y_hat


def stream(
    cache: Cache,
    sources: Sequence[CoderSites],
    shards: Iterable[int],
    device: str = "cpu",
    only: NDArray[np.bool_] | None = None,
) -> Iterator[list[StreamBatch]]:
    """For each shard, one batch per source, in order; the next is read and encoded while the reports take this one.

    Args:
        only: [n_rows] the cache's rows that count; None: all but padding.
    """
    sites = dict.fromkeys(site for source in sources for site in (source.source, source.target))

    def read(shard: int) -> list[StreamBatch]:
        acts = {}
        for site in sites:
            chunk = cache.chunk(site, shard)
            acts[site] = chunk.clone() if device == "cpu" else chunk.to(device)
        return _batches(sources, shard_rows(cache, shard, only), acts)

    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        pending = None
        for shard in shards:
            upcoming = reader.submit(read, shard)
            if pending is not None:
                yield pending.result()
            pending = upcoming
        if pending is not None:
            yield pending.result()


def _batches(sources: Sequence[CoderSites], rows: ShardRows, acts: dict[str, Tensor]) -> list[StreamBatch]:
    batches = []
    for source in sources:
        codes, y_hat = encode(source, acts[source.source], rows.keep)
        batches.append(StreamBatch(rows, codes, acts[source.target] if source.reconstruct else None, y_hat))
    return batches
