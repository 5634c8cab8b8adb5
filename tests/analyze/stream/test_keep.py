"""Bounded lists against sorting everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparse_pipeline.analyze.stream.batches import ShardRows
from sparse_pipeline.analyze.stream.keep import Keeper
from sparse_pipeline.shared.codes.sparse import SparseCodes

CTX, F = 10, 40


def shard(number: int, tokens: np.ndarray) -> ShardRows:
    n = len(tokens)
    return ShardRows(
        number,
        number * n,
        CTX,
        tokens.astype(np.int64),
        *np.zeros((2, n), np.int64),
        np.zeros(n, np.uint8),
        np.ones(n, bool),
    )


@pytest.fixture
def world() -> tuple[list[SparseCodes], list[ShardRows], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, 600)
    tokens[::CTX] = 9
    z = np.where(rng.random((600, F)) < 0.3, rng.integers(1, 30, (600, F)), 0).astype(np.float32)  # many ties
    codes = [SparseCodes.from_dense(part) for part in np.split(z, 3)]
    return codes, [shard(k, part) for k, part in enumerate(np.split(tokens, 3))], z, tokens


def contexts(tokens: np.ndarray, before: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[max(r - r % CTX, r - before) : r + 1]) for r in range(len(tokens))]


def best(z: np.ndarray, latent: int, k: int, keys: list[Any] | None) -> list[int]:
    seen: set[Any] = set()
    out = []
    for row in np.argsort(-z[:, latent], kind="stable").tolist():
        if z[row, latent] > 0 and (keys is None or keys[row] not in seen) and len(out) < k:
            out.append(row)
            if keys is not None:
                seen.add(keys[row])
    return out


@pytest.mark.parametrize("distinct", [False, True])
def test_keeps_what_sorting_would_keep(world: tuple, distinct: bool) -> None:
    codes, rows, z, tokens = world
    keeper = Keeper(F, 7, distinct=distinct, context=3)
    for c, r in zip(codes, rows, strict=True):
        keeper.add(c, r)
    for i in range(F):
        want = best(z, i, 7, contexts(tokens, 3) if distinct else None)
        assert keeper.row[i][: keeper.kept_of(i)].tolist() == want
        np.testing.assert_array_equal(keeper.value[i][: len(want)], z[want, i])


@pytest.mark.parametrize("by", ["value", "sample"])
@pytest.mark.parametrize("distinct", [False, True])
def test_merges_exactly_in_any_order(world: tuple, distinct: bool, by: Any) -> None:
    codes, rows, z, _ = world

    def make() -> Keeper:
        return Keeper(F, 7, by, distinct, window=(4, 2), context=3)

    whole, parts = make(), [make() for _ in range(3)]
    for k in range(3):
        whole.add(codes[k], rows[k])
        parts[k].add(codes[k], rows[k])
    merged = make()
    for k in (2, 0, 1):
        merged.merge(parts[k])
    np.testing.assert_array_equal(merged.row, whole.row)
    np.testing.assert_array_equal(merged.score, whole.score)
    for i in range(F):
        for s in range(whole.kept_of(i)):
            row = int(whole.row[i, s])
            window = [z[r, i] if row - row % CTX <= r < row - row % CTX + CTX else 0 for r in range(row - 4, row + 3)]
            np.testing.assert_array_equal(whole.heat_of(i)[s], window)
            np.testing.assert_array_equal(merged.heat_of(i)[s], window)


def test_a_sample_is_uniform_and_only_of_the_rows_asked_for(world: tuple) -> None:
    codes, rows, z, _ = world
    keeper = Keeper(F, 50, by="sample")
    for c, r in zip(codes, rows, strict=True):
        keeper.add(c, r, only=r.rest)
    kept = keeper.row[keeper.score > 0]
    assert (kept % CTX != 0).all()
    assert all(z[row, i] > 0 for i in range(F) for row in keeper.row[i] if row >= 0)
    # Rows are drawn evenly from the three shards: the sample's mean row is that of all firings, within chance.
    middle = np.concatenate([np.flatnonzero((z[:, i] > 0) & (np.arange(600) % CTX != 0)) for i in range(F)])
    assert abs(kept.mean() - middle.mean()) < 60


def test_contexts_are_equal_when_the_tokens_are(world: tuple) -> None:
    _, rows, _, tokens = world
    found = np.concatenate([r.context(3) for r in rows])
    by_hash: dict[int, set[tuple[int, ...]]] = {}
    by_text: dict[tuple[int, ...], set[int]] = {}
    for key, text in zip(found.tolist(), contexts(tokens, 3), strict=True):
        by_hash.setdefault(key, set()).add(text)
        by_text.setdefault(text, set()).add(key)
    assert all(len(texts) == 1 for texts in by_hash.values())
    assert all(len(keys) == 1 for keys in by_text.values())


def test_distinct_needs_a_context() -> None:
    with pytest.raises(ValueError, match="context"):
        Keeper(3, 2, distinct=True)
