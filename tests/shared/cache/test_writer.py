from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
import zarr

from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec, open_cache, verify_cache
from sparse_pipeline.shared.cache.writer import Share
from sparse_pipeline.shared.errors import DataError, PipelineError
from tests.sealed import reseal
from tests.shared.cache.folders import contents
from tests.synthetic import TokenTable, make_cache, sparse_acts, token_table, write_missing

SITES = {"layer_01.resid_mid": 32, "encoder.layer.1:out": 9}
CONFIG = {"model": {"name": "m", "revision": None}, "ctx": 16, "sites": list(SITES)}


@pytest.fixture
def table() -> TokenTable:
    return token_table(70, 16, packing="document", doc_length=(4, 30))


@pytest.fixture
def acts(table: TokenTable) -> dict[str, torch.Tensor]:
    return sparse_acts(table, SITES)


def layout(n_seq: int = 70, dtype: str = "bfloat16") -> Layout:
    return Layout(n_seq, 16, 256, tuple(SiteSpec(name, width, dtype) for name, width in SITES.items()))


def begin(path: Path, **changes) -> CacheWriter:
    return CacheWriter.create(path, changes.pop("layout", layout()), CONFIG | changes, {"torch": torch.__version__})


def test_zarr_reads_the_same_bits(tmp_path: Path, table: TokenTable, acts) -> None:
    with begin(tmp_path / "c") as writer:
        write_missing(writer, table, acts)
        writer.finish()
    group = zarr.open(str(tmp_path / "c/acts.zarr"), mode="r")
    for name in ("tokens", "doc_id", "pos_in_doc", "flags"):
        np.testing.assert_array_equal(group[name][:], getattr(table, name))
        assert group[name].dtype == getattr(table, name).dtype
    for name, width in SITES.items():
        assert group[name].shape == (70 * 16, width)
        assert group[name].chunks == (256, width)
        assert group[name].attrs["logical_dtype"] == "bfloat16"
        assert torch.equal(torch.from_numpy(group[name][:]).view(torch.bfloat16), acts[name])
    assert dict(group.attrs) == {"format": "activation-cache", "format_version": 3}


def test_a_float32_site_is_stored_as_it_is(tmp_path: Path, table: TokenTable, acts) -> None:
    full = {name: value.float() * 1.001 for name, value in acts.items()}
    with begin(tmp_path / "c", layout=layout(dtype="float32")) as writer:
        write_missing(writer, table, full)
        writer.finish()
    group = zarr.open(str(tmp_path / "c/acts.zarr"), mode="r")
    cache = open_cache(tmp_path / "c")
    for name, value in full.items():
        np.testing.assert_array_equal(group[name][:], value.numpy())
        assert torch.equal(torch.cat([cache.chunk(name, shard) for shard in cache.shards]), value)


def test_a_chunk_file_is_its_memory_and_a_checksum(tmp_path: Path, table: TokenTable, acts) -> None:
    with begin(tmp_path / "c") as writer:
        write_missing(writer, table, acts)
        writer.finish()
    raw = (tmp_path / "c/acts.zarr/layer_01.resid_mid/c.1.0").read_bytes()
    payload = acts["layer_01.resid_mid"][256:512].view(torch.uint16).numpy().astype("<u2").tobytes()
    assert raw == payload + google_crc32c.value(payload).to_bytes(4, "little")
    commit = json.loads((tmp_path / "c/commits/000001.json").read_bytes())
    assert commit["files"]["layer_01.resid_mid/c.1.0"] == {
        "bytes": 256 * 32 * 2 + 4,
        "crc32c": f"{google_crc32c.value(payload):08x}",
    }
    assert commit["tokens_sha256"] == hashlib.sha256(table.tokens[16:32].astype("<i4").tobytes()).hexdigest()
    assert commit["sequences"] == 16
    assert commit["tokens"] == int(((table.flags[16:32] & 4) == 0).sum())


def test_the_room_behind_a_short_shard_is_padding(tmp_path: Path, table: TokenTable, acts) -> None:
    with begin(tmp_path / "c") as writer:
        write_missing(writer, table, acts)
        writer.finish()
    flags = np.fromfile(tmp_path / "c/acts.zarr/flags/c.4.0", np.uint8)[:-4]
    assert (flags[6 * 16 :] == 4).all()
    rows = np.fromfile(tmp_path / "c/acts.zarr/layer_01.resid_mid/c.4.0", np.uint16)[:-2]
    assert not rows[6 * 16 * 32 :].any()


def test_uint16_bits_do_for_a_tensor(tmp_path: Path, table: TokenTable, acts) -> None:
    bits = {name: value.view(torch.uint16).numpy() for name, value in acts.items()}
    for name, values in (("a", acts), ("b", bits)):
        with begin(tmp_path / name) as writer:
            write_missing(writer, table, values)
            writer.finish()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_threads_write_distinct_shards(tmp_path: Path, table: TokenTable, acts) -> None:
    with begin(tmp_path / "a") as writer:
        write_missing(writer, table, acts)
        writer.finish()
    with begin(tmp_path / "b") as writer:
        halves = [writer.missing_shards()[0::2], writer.missing_shards()[1::2]]

        def work(shards: list[int]) -> None:
            for shard in shards:
                cut, rows = (slice(r.start, r.stop) for r in (layout().seqs_of(shard), layout().rows_of(shard)))
                arrays = {name: getattr(table, name)[cut] for name in ("tokens", "doc_id", "pos_in_doc", "flags")}
                writer.write_shard(shard, **arrays, acts={name: value[rows] for name, value in acts.items()})

        threads = [threading.Thread(target=work, args=(half,)) for half in halves]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.finish()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_ranks_own_their_shards(tmp_path: Path, table: TokenTable, acts) -> None:
    first = CacheWriter.create(tmp_path / "c", layout(), CONFIG, {}, share=Share(0, 2))
    second = CacheWriter.create(tmp_path / "c", layout(), CONFIG, {}, share=Share(1, 2))
    assert (first.missing_shards(), second.missing_shards()) == ([0, 2, 4], [1, 3])
    with pytest.raises(PipelineError, match="being written by another process"):
        CacheWriter.create(tmp_path / "c", layout(), CONFIG, {}, share=Share(1, 2))
    write_missing(second, table, acts)
    second.close()
    with pytest.raises(DataError, match="shards 0, 2, 4 have no commit"):
        first.finish()
    write_missing(first, table, acts)
    first.finish()
    assert verify_cache(tmp_path / "c").ok
    assert not list((tmp_path / "c").glob(".lock-*"))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with begin(tmp_path / "c"), pytest.raises(PipelineError, match="being written by another process"):
        begin(tmp_path / "c")
    begin(tmp_path / "c").close()


def test_a_resume_writes_what_is_missing_and_nothing_else(tmp_path: Path, table: TokenTable, acts) -> None:
    with begin(tmp_path / "c") as writer:
        write_missing(writer, table, acts)
        writer.finish()
    whole = contents(tmp_path / "c")
    (tmp_path / "c/commits/000002.json").unlink()
    (tmp_path / "c/acts.zarr/flags/c.9.0.partial").write_bytes(b"half")
    kept = (tmp_path / "c/acts.zarr/tokens/c.0.0").stat().st_mtime_ns
    with begin(tmp_path / "c") as writer:
        assert not writer.complete
        assert writer.missing_shards() == [2]
        write_missing(writer, table, acts)
        writer.finish()
    assert contents(tmp_path / "c") == whole
    assert (tmp_path / "c/acts.zarr/tokens/c.0.0").stat().st_mtime_ns == kept


def test_data_that_ends_sooner_than_planned(tmp_path: Path, table: TokenTable, acts) -> None:
    plan = layout(200)
    with begin(tmp_path / "c", layout=plan) as writer:
        for shard in range(5):
            cut = slice(shard * 16, min(shard * 16 + 16, 70))
            arrays = {name: getattr(table, name)[cut] for name in ("tokens", "doc_id", "pos_in_doc", "flags")}
            rows = slice(cut.start * 16, cut.stop * 16)
            writer.write_shard(shard, **arrays, acts={name: value[rows] for name, value in acts.items()})
        with pytest.raises(DataError, match="shards 5, 6, 7, 8, 9 and 3 more have no commit"):
            writer.finish()
        with pytest.raises(DataError, match="holds 6 sequences, expected 16"):
            writer.finish(n_seq=80)
        unfinished = open_cache(tmp_path / "c", allow_incomplete=True)
        assert (unfinished.flags[70:] == 4).all()
        assert verify_cache(tmp_path / "c").ok
        writer.finish(n_seq=70, extra={"documents": 3})
    cache = open_cache(tmp_path / "c")
    assert cache.n_seq == 70
    assert cache.manifest["extra"] == {"documents": 3}
    np.testing.assert_array_equal(cache.tokens, table.tokens)
    assert zarr.open(str(tmp_path / "c/acts.zarr"), mode="r")["layer_01.resid_mid"].shape == (1120, 32)
    assert verify_cache(tmp_path / "c").ok
    with begin(tmp_path / "c", layout=plan) as writer:  # the plan is still the plan, and there is nothing left to do
        assert writer.complete
        assert writer.missing_shards() == []


def test_another_config_is_refused_field_by_field(tmp_path: Path, table: TokenTable, acts) -> None:
    with begin(tmp_path / "c") as writer:
        write_missing(writer, table, acts)
    for shard in range(1, 5):  # one commit is enough
        (tmp_path / f"c/commits/{shard:06d}.json").unlink()
    before = contents(tmp_path / "c")
    with pytest.raises(DataError) as caught:
        begin(tmp_path / "c", model={"name": "other", "revision": None}, layout=replace(layout(), n_seq=71))
    assert "\n".join(caught.value.message.splitlines()[1:]) == (
        '  model.name: the cache has "m", this config has "other"\n  layout.n_seq: the cache has 70, this config has 71'
    )
    assert "pipeline inspect" in str(caught.value.hint)
    assert contents(tmp_path / "c") == before
    begin(tmp_path / "c").close()  # the lock is free again


def test_a_cache_without_a_commit_makes_room_for_another_config(tmp_path: Path, table: TokenTable, acts) -> None:
    begin(tmp_path / "c", model={"name": "other"}, layout=layout(n_seq=16)).close()
    (tmp_path / "c/notes.txt").write_text("mine")
    with begin(tmp_path / "c") as writer:
        write_missing(writer, table, acts)
        writer.finish()
    make_cache(tmp_path / "whole", table=table, n_seq=70, ctx=16, acts=acts, config=CONFIG)
    assert open_cache(tmp_path / "c").identity == open_cache(tmp_path / "whole").identity
    assert verify_cache(tmp_path / "c").ok
    assert (tmp_path / "c/notes.txt").read_text() == "mine"


def test_ranks_of_different_configs_do_not_replace_one_another(tmp_path: Path) -> None:
    with (
        CacheWriter.create(tmp_path / "c", layout(), CONFIG, {}, share=Share(0, 2)),
        pytest.raises(DataError, match="another rank is starting .* with a different config"),
    ):
        CacheWriter.create(tmp_path / "c", layout(), CONFIG | {"ctx": 17}, {}, share=Share(1, 2))


def test_provenance_is_recorded_once_and_not_compared(tmp_path: Path) -> None:
    CacheWriter.create(tmp_path / "c", layout(), CONFIG, {"torch": "1"}).close()
    CacheWriter.create(tmp_path / "c", layout(), CONFIG, {"torch": "2"}).close()
    assert json.loads((tmp_path / "c/plan.json").read_bytes())["provenance"] == {"torch": "1"}


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is not a cache .* thesis\.txt"):
        begin(tmp_path / "c")
    assert contents(tmp_path / "c") == {"thesis.txt": b"mine"}
    (tmp_path / "f").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        begin(tmp_path / "f")


def test_a_cache_of_another_version_is_refused(tmp_path: Path) -> None:
    begin(tmp_path / "c").close()
    reseal(tmp_path / "c/plan.json", lambda plan: plan.update(format_version=2))
    with pytest.raises(DataError, match="has format version 2, expected 3"):
        begin(tmp_path / "c")


@pytest.mark.parametrize("at", range(13))
def test_a_full_disk_loses_nothing(tmp_path: Path, table: TokenTable, acts, monkeypatch, at: int) -> None:
    """ENOSPC in the middle of each write of a shard in turn: two for each of the six chunks, one for the commit."""
    make_cache(tmp_path / "whole", table=table, n_seq=70, ctx=16, acts=acts, config=CONFIG)
    writer = CacheWriter.create(tmp_path / "c", open_cache(tmp_path / "whole").layout, CONFIG, {"made_by": "tests"})
    real, calls = os.write, 0

    def full(descriptor: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 13 * 2 + 1 + at:  # in the third shard
            real(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(PipelineError, match=r"the disk is full: .* needs [\d,]+ bytes, [\d,]+ are free") as caught:
        write_missing(writer, table, acts)
    assert caught.value.exit_code == 1
    monkeypatch.setattr(os, "write", real)
    assert not list((tmp_path / "c").rglob("*.partial"))
    assert writer.missing_shards() == [2, 3, 4]
    assert verify_cache(tmp_path / "c").ok
    write_missing(writer, table, acts)
    writer.finish()
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_a_disk_that_is_full_from_the_start(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("sparse_pipeline.shared.cache.writer.write_metadata", full)
        with pytest.raises(PipelineError, match=r"the disk is full: .* needs 119,160 bytes"):
            begin(tmp_path / "c")
    assert verify_cache(tmp_path / "c").ok  # nothing was promised
    begin(tmp_path / "c").close()
    assert verify_cache(tmp_path / "c").ok


def test_wrong_arrays_are_refused(tmp_path: Path, table: TokenTable, acts) -> None:
    cut = {name: getattr(table, name)[:16] for name in ("tokens", "doc_id", "pos_in_doc", "flags")}
    rows = {name: value[:256] for name, value in acts.items()}
    with begin(tmp_path / "c") as writer:

        def write(**changes) -> None:
            writer.write_shard(0, **{**cut, "acts": rows, **changes})

        with pytest.raises(ValueError, match="expected \\(16, 16\\)"):
            write(flags=table.flags[:15])
        with pytest.raises(ValueError, match="does not fit into uint16"):
            write(pos_in_doc=cut["pos_in_doc"].astype(np.int64) + 70_000)
        with pytest.raises(ValueError, match="found float32, expected int32"):
            write(tokens=cut["tokens"].astype(np.float32))
        with pytest.raises(ValueError, match="holds at most 16 sequences, found 17"):
            write(tokens=table.tokens[:17])
        with pytest.raises(ValueError, match=r"found activations of \['layer_01.resid_mid'\]"):
            write(acts={"layer_01.resid_mid": rows["layer_01.resid_mid"]})
        with pytest.raises(ValueError, match="found a tensor of float32, expected bfloat16"):
            write(acts={name: value.float() for name, value in rows.items()})
        with pytest.raises(ValueError, match=r"expected uint16 \(256, 32\)"):
            write(acts=rows | {"layer_01.resid_mid": rows["layer_01.resid_mid"][:, :31]})
        assert writer.missing_shards() == [0, 1, 2, 3, 4]
        write()
        assert writer.missing_shards() == [1, 2, 3, 4]
        with pytest.raises(ValueError, match="committed shards are never rewritten"):
            write()
    assert open_cache(tmp_path / "c", allow_incomplete=True).shards == [0]


def test_a_committed_chunk_that_is_gone_is_not_resumed_over(tmp_path: Path, table: TokenTable, acts) -> None:
    with begin(tmp_path / "c") as writer:
        write_missing(writer, table, acts)
    (tmp_path / "c/acts.zarr/flags/c.1.0").unlink()
    with pytest.raises(DataError, match=r"flags/c.1.0 has the wrong size: found no file, expected 260 bytes"):
        begin(tmp_path / "c")


def test_everything_is_synced_before_the_commit_names_it(tmp_path: Path, table: TokenTable, acts, monkeypatch) -> None:
    """A power cut leaves whole shards: file synced, renamed, its folder synced, and only then the commit."""
    calls: list[tuple[str, str]] = []
    real_sync, real_replace = os.fsync, os.replace

    def name(path: str) -> str:
        return str(Path(path).relative_to(tmp_path / "c"))

    def sync(descriptor: int) -> None:
        calls.append(("sync", name(str(Path(f"/proc/self/fd/{descriptor}").readlink()))))
        real_sync(descriptor)

    def rename(source: str, target: str) -> None:
        calls.append(("rename", name(target)))
        real_replace(source, target)

    with begin(tmp_path / "c") as writer:
        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "replace", rename)
        arrays = {array: getattr(table, array)[:16] for array in ("tokens", "doc_id", "pos_in_doc", "flags")}
        writer.write_shard(0, **arrays, acts={site: value[:256] for site, value in acts.items()})
    for array in ("tokens", "doc_id", "pos_in_doc", "flags", *SITES):
        file = f"acts.zarr/{array}/c.0.0"
        steps = [("sync", f"{file}.partial"), ("rename", file), ("sync", f"acts.zarr/{array}")]
        places = [calls.index(step) for step in steps]
        assert places == sorted(places)
        assert places[-1] < calls.index(("sync", "commits/000000.json.partial"))
    assert calls[-2:] == [("rename", "commits/000000.json"), ("sync", "commits")]
    assert calls.index(("rename", "acts.zarr/tokens/c.0.0")) < calls.index(
        ("rename", "acts.zarr/layer_01.resid_mid/c.0.0")
    )
