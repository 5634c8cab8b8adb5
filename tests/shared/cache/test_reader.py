from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import Cache, open_cache
from sparse_pipeline.shared.errors import DataError, UsageError
from tests.sealed import reseal
from tests.shared.cache.folders import contents
from tests.synthetic import make_cache, sparse_acts, token_table

SITE = "layer_01.resid_mid"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path / "c", n_seq=70, ctx=16, packing="document")


def test_chunks_are_the_rows_that_were_written(cache: Cache) -> None:
    table = token_table(70, 16, packing="document")
    acts = sparse_acts(table, dict.fromkeys(cache.sites, 32))
    for site in cache.sites:
        assert torch.equal(torch.cat([cache.chunk(site, shard) for shard in cache.shards]), acts[site])
    for name in ("tokens", "doc_id", "pos_in_doc", "flags"):
        np.testing.assert_array_equal(getattr(cache, name), getattr(table, name))
    assert [len(cache.chunk(SITE, shard)) for shard in cache.shards] == [256, 256, 256, 256, 96]
    assert cache.chunk(SITE, 0).dtype == torch.bfloat16


def test_a_chunk_is_a_view_of_the_file_and_private(cache: Cache) -> None:
    """Nothing is copied on opening: bytes that reach the file later are seen through the map; ours never reach it."""
    file, offset = cache.chunk_file(SITE, 1)
    before = contents(cache.path)
    mine, untouched = cache.chunk(SITE, 1), cache.chunk(SITE, 1)
    mine[0] = 7
    assert contents(cache.path) == before
    with file.open("r+b") as handle:
        handle.seek(offset)
        handle.write(torch.full((32,), 3.0).bfloat16().view(torch.uint8).numpy().tobytes())
    assert (untouched[0] == 3).all()
    assert (mine[0] == 7).all()


def test_the_file_and_offset_of_a_chunk(cache: Cache) -> None:
    file, offset = cache.chunk_file(SITE, 4)
    found = np.fromfile(file, np.uint16, 96 * 32, offset=offset).reshape(96, 32)
    np.testing.assert_array_equal(found, cache.chunk(SITE, 4).view(torch.uint16).numpy())


def test_rows_come_in_the_order_asked_for(cache: Cache) -> None:
    everything = torch.cat([cache.chunk(SITE, shard) for shard in cache.shards])
    index = [1119, 0, 256, 255, 0, 700]
    assert torch.equal(cache.rows(SITE, index), everything[index])
    assert torch.equal(cache.rows(SITE, torch.tensor(index)), everything[index])
    assert cache.rows(SITE, []).shape == (0, 32)
    with pytest.raises(IndexError, match="0 … 1119"):
        cache.rows(SITE, [1120])


def test_token_arrays_are_read_only(cache: Cache) -> None:
    with pytest.raises(ValueError, match="read-only"):
        cache.tokens[0, 0] = 1


def test_what_the_cache_says_of_itself(cache: Cache) -> None:
    assert (cache.n_seq, cache.ctx, cache.n_rows, cache.complete) == (70, 16, 1120, True)
    assert cache.config["model"] == "synthetic"
    assert len(cache.identity) == 64
    assert cache.sites[SITE].layer == 1
    with pytest.raises(
        UsageError, match="no site 'layer_09.mlp_out' in .*; its sites: layer_01.resid_mid, layer_01.mlp_out"
    ):
        cache.chunk("layer_09.mlp_out", 0)
    with pytest.raises(DataError, match="shard 9 of .* has no commit"):
        cache.chunk(SITE, 9)


def test_no_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cache at") as caught:
        open_cache(tmp_path / "nothing")
    assert caught.value.exit_code == 3
    assert str(caught.value.hint).startswith("pipeline status")


def test_no_cache_of_that_name_lists_those_beside_it(cache: Cache) -> None:
    with pytest.raises(DataError, match=f"did you mean {cache.path.name!r}") as caught:
        open_cache(cache.path.with_name(cache.path.name + "x"))
    assert caught.value.hint == (
        f"caches in {cache.path.parent}: {cache.path.name} (train.cache, analyze.cache); pipeline harvest writes more"
    )


def test_a_deleted_commit(cache: Cache) -> None:
    tokens = cache.tokens
    (cache.path / "commits/000003.json").unlink()
    with pytest.raises(DataError, match=r"is incomplete: 4 of 5 shards are committed \(shard 3 is not\)") as caught:
        open_cache(cache.path)
    assert caught.value.hint == f"pipeline harvest -c {cache.path} writes what is missing"
    part = open_cache(cache.path, allow_incomplete=True)
    assert not part.complete
    assert part.shards == [0, 1, 2, 4]
    assert (part.flags[48:64] == 4).all()
    assert not part.tokens[48:64].any()
    np.testing.assert_array_equal(part.tokens[64:], tokens[64:])
    with pytest.raises(DataError, match="shard 3"):
        part.chunk(SITE, 3)


def test_a_missing_manifest(cache: Cache) -> None:
    (cache.path / "manifest.json").unlink()
    with pytest.raises(DataError, match="5 of 5 shards are committed, but it is not finished"):
        open_cache(cache.path)
    assert open_cache(cache.path, allow_incomplete=True).shards == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["layer_01.mlp_out/c.2.0", "tokens/c.2.0"])
def test_a_truncated_chunk(cache: Cache, name: str) -> None:
    file = cache.path / "acts.zarr" / name
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.truncate(size - 100)
    with pytest.raises(DataError) as caught:
        open_cache(cache.path)
    assert caught.value.message == f"{file} has the wrong size: found {size - 100:,} bytes, expected {size:,} bytes"
    assert caught.value.hint == f"pipeline verify {cache.path} --repair"


def test_a_missing_chunk(cache: Cache) -> None:
    (cache.path / "acts.zarr/layer_01.mlp_out/c.0.0").unlink()
    (cache.path / "acts.zarr/layer_01.mlp_out/c.1.0").unlink()
    with pytest.raises(DataError, match=r"c\.0\.0 has the wrong size: found no file, .* \(and 1 more files\)"):
        open_cache(cache.path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": 2}, "has format version 2, expected 3"),
        ({"format": "shards"}, "is 'shards' of version 3"),
        ({"layout": {"n_seq": 70}}, "manifest.json is not of this format: layout.ctx: Field required"),
    ],
)
def test_another_format(cache: Cache, change: dict, says: str) -> None:
    reseal(cache.path / "manifest.json", lambda manifest: manifest.update(change))
    with pytest.raises(DataError, match=says):
        open_cache(cache.path)


def test_a_manifest_that_is_not_json(cache: Cache) -> None:
    (cache.path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is not valid JSON"):
        open_cache(cache.path)
