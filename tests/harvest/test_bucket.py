"""A harvest into object storage (the memory of this process): the bytes of a folder, resumes, several machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline import pipeline
from sparse_pipeline.harvest.config import cache_path
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.harvest.run import HarvestResult, ShareResult, harvest, harvest_share
from sparse_pipeline.shared.cache import CacheWriter, verify_cache
from sparse_pipeline.shared.errors import DataError
from sparse_pipeline.shared.overview.describe import describe, describe_text
from sparse_pipeline.shared.overview.find import frozen_settings
from sparse_pipeline.shared.overview.status import status
from sparse_pipeline.shared.ranks import Rank
from tests.harvest.conftest import CTX
from tests.harvest.test_run import config_for, contents
from tests.shared.cache.buckets import Machine, machine, new_address, stored

pytest.importorskip("obstore")
__all__ = ["machine"]


def place() -> tuple[str, Path]:
    """An address for a cache called `one`, and the setting of the folder it is in."""
    address = new_address()
    return address, Path(address.rpartition("/")[0])


def saved(address: str, tmp_path: Path) -> dict[str, bytes]:
    """What is in the bucket, as `contents` has a folder."""
    for name, data in stored(address).items():
        file = tmp_path / "saved" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return contents(tmp_path / "saved")


def local(model: Path, texts: Path, folder: Path, **changes: Any) -> dict[str, bytes]:
    harvest(config_for(model, texts, folder, name="one", **changes))
    return {name: data for name, data in contents(folder / "one").items() if not name.startswith(".lock")}


def test_two_machines_one_of_which_is_lost(tiny_model, texts_file, tmp_path, machine: Machine, monkeypatch) -> None:
    """Process 1 of 2 dies on its machine; process 0 leaves its shards; a third machine writes them and finishes."""
    address, cache_dir = place()
    config = config_for(tiny_model, texts_file, cache_dir, name="one")

    class PowerCutError(Exception):
        pass

    real = CacheWriter.write_shard

    def dying(self: CacheWriter, shard: int, **arrays: Any) -> Any:
        if shard == 3:
            raise PowerCutError
        return real(self, shard, **arrays)

    machine("lost")
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(CacheWriter, "write_shard", dying)
        harvest_share(config, Rank(1, 2))
    machine("first")
    left = harvest_share(config, Rank(0, 2))
    assert isinstance(left, ShareResult)
    assert left.shards_missing == 2
    assert left.to_dict()["path"] == address
    entry = status(cache_dir, tmp_path).caches[0]
    assert entry["path"] == address
    assert entry["progress"] == "4 of 6 shards"
    assert entry["next"] == f"pipeline harvest -c {address}"
    with pytest.raises(DataError, match=f"{address} is incomplete: 4 of 6 shards"):
        from sparse_pipeline.shared.cache import open_cache

        open_cache(address)
    machine("third")
    assert plan(config).committed == 4
    done = harvest(config)
    assert isinstance(done, HarvestResult)
    assert done.shards_written == 2
    assert str(done).startswith(f"{address}: ")
    assert verify_cache(address).ok
    assert saved(address, tmp_path) == local(tiny_model, texts_file, tmp_path / "local")


def test_a_second_writer_leaves_what_the_first_has_written(tiny_model, texts_file, machine, monkeypatch) -> None:
    """One that begins later, without knowing of the other, computes only what is not committed when its turn comes."""
    address, cache_dir = place()
    config = config_for(tiny_model, texts_file, cache_dir, name="one")
    real, shards = CacheWriter.write_shard, []

    def meeting(self: CacheWriter, shard: int, **arrays: Any) -> Any:
        if not shards:  # while the first writes its first shard, the second harvests everything
            shards.append("second begins")
            machine("second")
            with monkeypatch.context() as patch:
                patch.setattr(CacheWriter, "write_shard", real)
                assert harvest(config).shards_written == 6
            machine("first")
        shards.append(shard)
        return real(self, shard, **arrays)

    monkeypatch.setattr(CacheWriter, "write_shard", meeting)
    harvest(config_for(tiny_model, texts_file, cache_dir, name="one", writers=1, buffers=1))
    assert shards[:2] == ["second begins", 0]
    assert len(shards) < 7, "what the second had committed was not computed again"
    assert verify_cache(address).ok


def test_plan_inspect_and_settings(tiny_model, texts_file, tmp_path, machine: Machine, capsys) -> None:
    address, cache_dir = place()
    config = config_for(tiny_model, texts_file, cache_dir, name="one", tokens=16 * CTX)
    assert cache_path(config) == Path(address)
    planned = plan(config)
    assert planned.to_dict()["in_bucket"]
    assert f"cache    {address} (0 of 2 shards committed)" in str(planned)
    assert "to upload; copies here take at most" in str(planned)
    assert not stored(address), "a plan writes nothing"
    harvest(config)
    machine("second")
    found = describe(Path(address))
    assert found["path"] == address
    assert found["bytes"] == planned.layout.bytes_on_disk()
    assert "copies on this machine" in describe_text(found)
    settings = frozen_settings(Path(address))["harvest"]
    assert (settings["cache_dir"], settings["name"]) == (address.rpartition("/")[0], "one")
    grown = ["harvest", "--json", "-c", address, "--set", f"harvest.tokens={48 * CTX}"]
    assert pipeline.run(grown) == 0
    assert json.loads(capsys.readouterr().out)["path"] == address
    assert pipeline.run(["verify", address]) == 0
