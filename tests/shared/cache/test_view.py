"""Batches, datasets and frames of a cache, against its own rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import sparse_pipeline as sp
from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.cache.batches import BatchSettings, batches
from sparse_pipeline.shared.cache.documents import DocumentRecord, DocumentWriter
from sparse_pipeline.shared.cache.rows import rest_rows, text_rows
from sparse_pipeline.shared.cache.view import CacheView
from sparse_pipeline.shared.errors import UsageError
from tests.synthetic import make_cache

MID, OUT = "layer_01.resid_mid", "layer_01.mlp_out"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CacheView:
    path = tmp_path_factory.mktemp("view") / "c"
    make_cache(path, n_seq=100, ctx=16, packing="document")
    with DocumentWriter(path) as documents:
        documents.add([DocumentRecord(0, "a.txt:1", "news", {"tone": "calm"}), DocumentRecord(3, "a.txt:4")])
        documents.finish()
    return sp.open_cache(path)


def check(cache: CacheView, batch: Batch) -> None:
    rows = batch.row.numpy()
    for site, values in batch.acts.items():
        assert torch.equal(values, cache.rows(site, rows))
    for name in ("tokens", "doc_id", "pos_in_doc", "flags"):
        assert np.array_equal(getattr(batch, name).numpy(), getattr(cache, name).reshape(-1)[rows]), name
    assert np.array_equal(batch.position.numpy(), rows % cache.ctx)


def test_in_order_every_text_row_once(cache: CacheView) -> None:
    found = list(cache.batches(batch_size=100, pool_rows=512))
    for batch in found:
        check(cache, batch)
    rows = np.concatenate([batch.row.numpy() for batch in found])
    assert np.array_equal(rows, np.flatnonzero(text_rows(cache.flags)))
    assert {len(batch) for batch in found[:-1]} == {100}
    assert set(found[0].acts) == {MID, OUT}


def test_shuffled_by_seed_and_epoch(cache: CacheView) -> None:
    def order(**settings: int) -> np.ndarray:
        some = cache.batches(MID, batch_size=64, shuffle=True, position_0=False, pool_rows=256, **settings)
        return np.concatenate([batch.row.numpy() for batch in some])

    first = order()
    assert np.array_equal(np.sort(first), np.flatnonzero(rest_rows(cache.flags, cache.ctx)))
    assert np.array_equal(first, order())
    assert not np.array_equal(first, order(epoch=1))
    assert not np.array_equal(first, order(seed=1))
    assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.5
    check(cache, next(cache.batches(shuffle=True)))


def test_workers_share_the_rows(cache: CacheView) -> None:
    settings = BatchSettings((MID,), batch_size=50, shuffle=True, pool_rows=256)
    rows = [b.row.numpy() for worker in range(3) for b in batches(cache, settings, worker, 3)]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.flatnonzero(text_rows(cache.flags)))


def test_a_dataset_for_pytorch(cache: CacheView) -> None:
    dataset = cache.dataset(OUT, batch_size=128, shuffle=True)
    first = torch.cat([batch.row for batch in DataLoader(dataset, batch_size=None)])
    dataset.set_epoch(1)
    second = torch.cat([batch.row for batch in DataLoader(dataset, batch_size=None)])
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)
    with pytest.raises(UsageError, match="no site 'x'"):
        next(cache.batches("x"))


def test_documents_and_the_zarr_group(cache: CacheView) -> None:
    frame = cache.documents()
    real = text_rows(cache.flags)
    assert frame["rows"].sum() == real.sum()
    for document in (0, 3, 7):
        rows = np.flatnonzero((cache.doc_id == document) & real)
        assert frame.loc[document, "rows"] == len(rows)
        assert frame.loc[document, "first_row"] == rows[0]
    assert frame.loc[0, ["source", "domain", "tone"]].tolist() == ["a.txt:1", "news", "calm"]
    assert frame.loc[3, "source"] == "a.txt:4"
    group = cache.group()
    bits = torch.from_numpy(group[MID][:]).view(torch.bfloat16)
    assert torch.equal(bits, cache.rows(MID, np.arange(cache.n_rows)))
    assert isinstance(sp.open_cache(Path(cache.path)), CacheView)
