from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparse_pipeline.shared.cache import Flag
from sparse_pipeline.shared.cache.heldout import split_rows
from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.hashing import mix
from sparse_pipeline.train.data.rows import row_batches, thin
from tests.synthetic import make_cache, token_table


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_no_document_is_on_both_sides(tmp_path: Path, packing: str) -> None:
    cache = make_cache(tmp_path / "c", n_seq=200, packing=packing)
    split = split_rows(cache, 0.2)
    doc_id, flags = cache.doc_id.reshape(-1), cache.flags.reshape(-1)
    assert not set(doc_id[split.train]) & set(doc_id[split.heldout])
    padding = (flags & Flag.PADDING) != 0
    np.testing.assert_array_equal(split.train | split.heldout, ~padding)
    assert not (split.train & split.heldout).any()
    assert split.n_documents == len(np.unique(doc_id[~padding]))
    assert split.n_heldout == round(0.2 * split.n_documents) == len(np.unique(doc_id[split.heldout]))
    assert 0.1 < split.heldout.sum() / (~padding).sum() < 0.3


def test_a_document_that_crosses_sequences_stays_together(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=100, doc_length=(20, 60))
    split = split_rows(cache, 0.3)
    held = split.heldout.reshape(100, 16)
    both = [s for s in range(100) if held[s].any() and not held[s].all()]
    assert both  # concatenated documents share sequences, so the split must be by row
    for document in np.unique(cache.doc_id):
        assert len(set(held[cache.doc_id == document])) == 1


def test_the_split_hangs_on_the_documents_alone(tmp_path: Path) -> None:
    """Not on shards, packing or seed: the same document ids are held out."""
    one = make_cache(tmp_path / "a", n_seq=150, packing="document", shard_rows=64)
    two = make_cache(tmp_path / "b", n_seq=150, packing="document", shard_rows=512, doc_length=(3, 9))
    chosen = [np.unique(c.doc_id.reshape(-1)[split_rows(c, 0.1).heldout]) for c in (one, two)]
    np.testing.assert_array_equal(*chosen)


def test_a_share_of_zero_holds_nothing_out_and_one_document_stays_in_training(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=20)
    assert not split_rows(cache, 0.0).heldout.any()
    single = make_cache(tmp_path / "one", n_seq=4, doc_length=(500, 500))
    split = split_rows(single, 0.05)
    assert (split.n_documents, split.n_heldout) == (1, 0)
    assert split.train.all()


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    single = make_cache(tmp_path / "one", n_seq=4, doc_length=(500, 500))
    with pytest.raises(UsageError, match="no row to train on: 1 documents, of which 1 are held out"):
        split_rows(single, 0.9)


def test_mix_is_splitmix64() -> None:
    """The published sequence for seed 0 (the finaliser of successive multiples of the golden gamma)."""
    gamma = np.uint64(0x9E3779B97F4A7C15)
    first = mix(np.array([0, gamma], np.uint64))
    assert [hex(int(value)) for value in first] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def test_held_out_batches_hold_the_held_out_rows(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=150)
    site = "layer_01.mlp_out"
    split = split_rows(cache, 0.2)
    batches = list(row_batches(cache, [site], np.flatnonzero(split.heldout), 100))
    rows = np.concatenate([batch.row.numpy() for batch in batches])
    np.testing.assert_array_equal(rows, np.flatnonzero(split.heldout))
    assert {len(batch) for batch in batches[:-1]} == {100}
    for batch in batches:
        assert batch.acts[site].equal(cache.rows(site, batch.row))
        np.testing.assert_array_equal(batch.tokens.numpy(), cache.tokens.reshape(-1)[batch.row])
        np.testing.assert_array_equal(batch.doc_id.numpy(), cache.doc_id.reshape(-1)[batch.row])
        np.testing.assert_array_equal(batch.position.numpy(), batch.row.numpy() % 16)
    assert list(row_batches(cache, [site], np.flatnonzero(split_rows(cache, 0.0).heldout), 100)) == []


def test_a_limit_spreads_over_all_held_out_rows(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=150)
    every = np.flatnonzero(split_rows(cache, 0.2).heldout)
    rows = thin(every, 10)
    assert len(np.unique(rows)) == 10
    assert {rows[0], rows[-1]} == {every[0], every[-1]}
    assert set(rows) <= set(every)
    assert thin(every, 10_000) is every


def test_chosen_rows_come_in_ascending_order(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=30)
    (batch,) = row_batches(cache, list(cache.sites), np.array([300, 2, 17]), 8)
    assert batch.row.tolist() == [2, 17, 300]


def test_document_ids_may_be_any_numbers_in_any_order(tmp_path: Path) -> None:
    """A reader's own cache need not count documents from 0, nor keep them together."""
    table = token_table(100, 16)
    ids = np.random.default_rng(0).permutation(2**32 - 1 - np.arange(table.doc_id.max() + 1)).astype(np.uint32)
    scattered = ids[table.doc_id][np.random.default_rng(1).permutation(100)]
    cache = make_cache(tmp_path / "c", 100, 16, table=replace(table, doc_id=scattered))
    split = split_rows(cache, 0.25)
    held = np.unique(scattered.reshape(-1)[split.heldout])
    assert len(held) == split.n_heldout == round(0.25 * len(np.unique(scattered)))
    np.testing.assert_array_equal(split.heldout, np.isin(scattered.reshape(-1), held))
