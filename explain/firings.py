"""Where chosen latents fire: the one pass over the cache, through the coder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..shared.cache import Cache
from ..shared.coders import Coder
from ..shared.codes.sparse import SparseCodes
from ..shared.memory import rows_within
from .text import Text, counting_rows

ENCODE_BYTES = 16 << 20
"""Dense pre-activations [rows, F] are kept below this."""

CHOOSING = 8
"""One shard in this many is read to choose latents."""

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Firings:
    """Of one latent: the rows of a text on which it fires, ascending, and its activations there."""

    rows: NDArray[np.int64]
    values: NDArray[np.float32]


def choose_latents(
    cache: Cache, coder: Coder, shards: Sequence[int], count: int, advance: Advance = lambda rows: None
) -> tuple[int, ...]:
    """Latents that fire in a part of the shards, evenly by how often; all of them where there are not more."""
    part = shards[::CHOOSING]
    fired = np.zeros(coder.n_latents, np.int64)
    counts = counting_rows(cache, part)
    start = 0
    for codes in encoded(cache, coder, part, advance):
        fired += codes.where(counts[start : start + codes.n_rows]).fired
        start += codes.n_rows
    order = np.argsort(-fired, kind="stable")[: int((fired > 0).sum())]
    if len(order) <= count:
        return tuple(sorted(order.tolist()))
    places = (np.arange(count) + 0.5) * len(order) / count
    return tuple(sorted(order[places.astype(np.int64)].tolist()))


def firings_of(
    cache: Cache,
    coder: Coder,
    shards: Sequence[int],
    text: Text,
    latents: Sequence[int],
    advance: Advance = lambda rows: None,
) -> list[Firings]:
    """The firings of each of the latents in the rows of the text that count.

    Args:
        text: of the same shards.
    """
    number = np.full(coder.n_latents, -1, np.int32)
    ordered = sorted(latents)
    number[ordered] = np.arange(len(ordered))
    rows: list[list[NDArray[np.int64]]] = [[] for _ in ordered]
    values: list[list[NDArray[np.float32]]] = [[] for _ in ordered]
    start = 0
    for codes in encoded(cache, coder, shards, advance):
        some = codes.columns(number, len(ordered)).where(text.counts[start : start + codes.n_rows])
        starts, local, _ = some.by_latent
        for i in np.flatnonzero(np.diff(starts)).tolist():
            rows[i].append(local[starts[i] : starts[i + 1]].astype(np.int64) + start)
            values[i].append(some.latent_values[starts[i] : starts[i + 1]])
        start += codes.n_rows
    none, nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    found = {
        latent: Firings(np.concatenate([none, *rows[i]]), np.concatenate([nothing, *values[i]]))
        for i, latent in enumerate(ordered)
    }
    return [found[latent] for latent in latents]


def encoded(cache: Cache, coder: Coder, shards: Sequence[int], advance: Advance) -> Iterator[SparseCodes]:
    """The codes of every row of each shard."""
    assert coder.source is not None
    device = coder.w_enc.device
    step = rows_within(4 * coder.n_latents, max(256, ENCODE_BYTES // (4 * coder.n_latents)))
    for shard in shards:
        x = cache.chunk(coder.source, shard)[: len(cache.layout.rows_of(shard))]
        with torch.inference_mode():
            parts = [coder.encode(x[at : at + step].to(device)) for at in range(0, len(x), step)]
        yield SparseCodes.from_parts(parts, coder.n_latents)
        advance(len(x))
