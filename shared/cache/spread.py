"""A part of a cache, spread evenly over it."""

from __future__ import annotations

from .reader import Cache


def choose_shards(cache: Cache, max_tokens: int | None) -> tuple[int, ...]:
    """All shards, or as many as hold max_tokens rows, spread evenly over the cache."""
    shards = cache.shards
    if max_tokens is None or max_tokens >= cache.n_rows:
        return tuple(shards)
    n = max(1, round(max_tokens / cache.layout.shard_rows))
    return tuple(shards[k * len(shards) // n] for k in range(min(n, len(shards))))
