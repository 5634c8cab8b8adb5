"""Which contexts are identical: by brute force over the tokens, and the same in training samples and in reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.analyze.stream.batches import shard_rows
from sparse_pipeline.analyze.stream.keep import Keeper
from sparse_pipeline.shared.cache import Cache, positions
from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.cache.rows import text_rows
from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.shared.codes.contexts import context_hashes, context_start
from sparse_pipeline.shared.codes.sparse import SparseCodes
from sparse_pipeline.train.samples.collect import SampleCollector
from sparse_pipeline.train.samples.config import SamplesConfig
from tests.synthetic import BOS_ID, make_cache

BEFORE = 3


@pytest.fixture(params=["concat", "apart", "document"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Cache:
    """Few tokens and short documents: contexts repeat, also across a document's border."""
    return make_cache(tmp_path / "c", n_seq=60, ctx=16, packing=request.param, doc_length=(2, 9), vocab=6)


def contexts(cache: Cache) -> list[tuple[int, ...]]:
    """Of every row: its token and at most BEFORE tokens before it, back to the last BOS of the sequence."""
    found = []
    for sequence in cache.tokens.tolist():
        for place in range(cache.ctx):
            begin = place
            while begin and sequence[begin] != BOS_ID and place - begin < BEFORE:
                begin -= 1
            found.append(tuple(sequence[begin : place + 1]))
    return found


def test_hashes_are_equal_exactly_where_contexts_are(cache: Cache) -> None:
    tokens, flags, rows = cache.tokens.reshape(-1), cache.flags.reshape(-1), np.arange(cache.n_rows)
    hashes, wanted = context_hashes(tokens, flags, cache.ctx, rows, BEFORE).tolist(), contexts(cache)
    assert len(set(hashes)) == len(set(wanted)) == len(set(zip(hashes, wanted, strict=True))) < cache.n_rows
    for row, context in enumerate(wanted):
        assert row - context_start(flags, cache.ctx, row, BEFORE) + 1 == len(context)


def test_training_samples_and_reports_call_the_same_contexts_identical(cache: Cache) -> None:
    """One latent fires on every row; each keeps the strongest row of every context, and the same ones."""
    flags = cache.flags.reshape(-1)
    text = text_rows(flags)
    value = np.where(text, np.random.default_rng(0).permutation(cache.n_rows) + 1, 0).astype(np.float32)

    keeper = Keeper(1, cache.n_rows, distinct=True, context=BEFORE)
    for shard in cache.shards:
        span = cache.layout.rows_of(shard)
        keeper.add(SparseCodes.from_dense(value[span.start : span.stop, None]), shard_rows(cache, shard))

    config = SamplesConfig(per_latent=cache.n_rows, threshold=0.0, context=BEFORE, max_bos_share=1.0)
    collector = SampleCollector(config, cache, 1, 1, 0.2)
    row, nothing = np.arange(cache.n_rows), torch.zeros(cache.n_rows)
    position = torch.from_numpy(positions(row, flags, cache.ctx))
    batch = Batch({}, nothing, position, nothing, nothing, torch.from_numpy(flags.copy()), torch.from_numpy(row))
    collector.collect(1, Codes(torch.from_numpy(value)[:, None], None, 1), batch)
    kept = collector.kept()

    of_row, best = contexts(cache), dict[tuple[int, ...], int]()
    for r in np.argsort(-value, kind="stable")[: text.sum()].tolist():
        best.setdefault(of_row[r], r)
    wanted = list(best.values())
    assert keeper.row[0, : keeper.kept_of(0)].tolist() == wanted
    assert kept.row[0, : kept.count[0]].tolist() == wanted
