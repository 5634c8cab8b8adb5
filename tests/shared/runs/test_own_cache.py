"""The cache that a run's record names: moved, in a bucket, gone, or another in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sparse_pipeline.shared.errors import DataError
from sparse_pipeline.shared.runs.own_cache import recorded_cache
from tests.shared.cache.buckets import Machine, machine, new_address, objects
from tests.synthetic import make_cache

__all__ = ["machine"]


def test_it_is_found_where_it_lies_now(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache" / "one", n_seq=32)
    known, run = dict(cache.record), tmp_path / "runs" / "run"
    assert recorded_cache(known, run).identity == cache.identity
    shutil.move(cache.path, tmp_path / "cache" / "renamed")
    assert recorded_cache(known, run).path == tmp_path / "cache" / "renamed"
    other = make_cache(tmp_path / "cache" / "one", n_seq=32, config={"seed": 1})
    with pytest.raises(DataError, match=str(other.path)):
        recorded_cache(known, run)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match="its cache was not found"):
        recorded_cache(known, run)
    with pytest.raises(DataError, match="names no cache"):
        recorded_cache({}, run)


def test_it_is_found_in_a_bucket(tmp_path: Path, machine: Machine) -> None:
    pytest.importorskip("obstore")
    cache, address = make_cache(tmp_path / "cache", n_seq=32), new_address()
    for file in cache.path.rglob("*"):
        if file.is_file() and not file.name.startswith(".lock"):
            objects(address).create(str(file.relative_to(cache.path)), [file.read_bytes()])
    assert recorded_cache({**cache.record, "path": address}, tmp_path).identity == cache.identity
