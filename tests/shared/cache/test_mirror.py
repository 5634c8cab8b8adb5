"""Caches in a bucket: the bytes of a folder, writers that meet, copies that are evicted, damaged or out of date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec, open_cache, verify_cache
from sparse_pipeline.shared.cache.growth import stand
from sparse_pipeline.shared.cache.in_bucket import begin
from sparse_pipeline.shared.cache.mirror import at_hand, mirror_of, shown
from sparse_pipeline.shared.cache.repair import repair_cache
from sparse_pipeline.shared.cache.writer import Share
from sparse_pipeline.shared.errors import DataError, PipelineError, UsageError, repair_command
from sparse_pipeline.shared.objects.room import BYTES
from sparse_pipeline.shared.objects.store import Entry, Objects
from tests.shared.cache.buckets import Machine, machine, new_address, objects, stored
from tests.shared.cache.folders import contents
from tests.synthetic import TokenTable, sparse_acts, token_table, write_missing

pytest.importorskip("obstore")
__all__ = ["machine"]

SITES = {"layer_01.resid_mid": 16, "layer_01.mlp_out": 8}
SITE, OTHER = SITES
CONFIG = {"model": "m"}


@pytest.fixture(scope="module")
def table() -> TokenTable:
    """70 sequences of 16 in shards of 16 sequences: five shards, the last short."""
    return token_table(70, 16, packing="document", doc_length=(4, 30))


@pytest.fixture(scope="module")
def acts(table: TokenTable) -> dict[str, Tensor]:
    return sparse_acts(table, SITES)


def layout(n_seq: int = 70, quantised: str | None = None, **changes: Any) -> Layout:
    specs = tuple(SiteSpec(name, width, quantised=quantised) for name, width in SITES.items())  # type: ignore[arg-type]
    return Layout(n_seq, 16, 256, specs, **changes)


def begun(path: Path | str, share: Share | None = None, **changes: Any) -> CacheWriter:
    shapes = changes.pop("layout", None) or layout()
    return CacheWriter.create(path, shapes, {**CONFIG, **changes}, {"torch": "t"}, share)


def written(path: Path | str, table: TokenTable, acts: dict[str, Tensor], **changes: Any) -> None:
    with begun(path, **changes) as writer:
        write_missing(writer, table, acts)
        writer.finish()


def write(writer: CacheWriter, shard: int, table: TokenTable, acts: dict[str, Tensor]) -> None:
    seqs, rows = writer.layout.seqs_of(shard), writer.layout.rows_of(shard)
    names = ("tokens", "doc_id", "pos_in_doc", "flags")
    described = {name: getattr(table, name)[seqs.start : seqs.stop] for name in names}
    writer.write_shard(shard, **described, acts={name: value[rows.start : rows.stop] for name, value in acts.items()})


def files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.startswith(".lock")}


def values(path: Path | str, site: str) -> Tensor:
    cache = open_cache(path)
    return torch.cat([cache.chunk(site, shard) for shard in cache.shards])


@pytest.mark.parametrize("shapes", [layout(), layout(quantised="int8"), layout(chunk_rows=64)])
def test_a_bucket_holds_the_bytes_of_a_folder(tmp_path, table, acts, machine: Machine, shapes: Layout) -> None:
    address = new_address()
    written(address, table, acts, layout=shapes)
    written(tmp_path / "c", table, acts, layout=shapes)
    assert stored(address) == files(tmp_path / "c")
    machine("second")
    assert verify_cache(address).ok
    ours, theirs = open_cache(address), open_cache(tmp_path / "c")
    assert torch.equal(values(address, SITE), values(tmp_path / "c", SITE))
    assert torch.equal(ours.rows(OTHER, [3, 900]), theirs.rows(OTHER, [3, 900]))
    for name in ("tokens", "doc_id", "pos_in_doc", "flags"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.record == {"path": address, "identity": theirs.identity}


def test_zarr_reads_it_from_the_bucket(table, acts, machine: Machine) -> None:
    import zarr
    from zarr.storage import ObjectStore

    address = new_address()
    written(address, table, acts)
    there = objects(address)
    group: Any = zarr.open_group(ObjectStore(there.store), path="caches/one/acts.zarr", mode="r")
    assert torch.equal(torch.from_numpy(group[SITE][:]).view(torch.bfloat16), acts[SITE])
    np.testing.assert_array_equal(group["tokens"][:], table.tokens)


@pytest.mark.parametrize("quantised", [None, "int8", "fp8"])
def test_two_writers_commit_a_shard_once(tmp_path, table, acts, machine: Machine, quantised: str | None) -> None:
    """The second has computed other bits of the same rows (another device): it takes those that are there."""
    address, shapes = new_address(), layout(quantised=quantised)
    other = {name: (value.float() * 1.03).bfloat16() for name, value in acts.items()}
    first = begun(address, layout=shapes)
    machine("second")
    second = begun(address, layout=shapes)
    assert first.missing_shards() == second.missing_shards() == [0, 1, 2, 3, 4]
    write(first, 0, table, acts)
    before = stored(address)
    write(second, 0, table, other)
    assert stored(address) == before, "the loser changes nothing"
    write(second, 1, table, other)
    write(first, 1, table, acts)
    assert first.committed_elsewhere(2) is False
    for shard in (2, 3, 4):
        write(second, shard, table, other)
    assert first.committed_elsewhere(2)
    assert first.missing_shards() == [3, 4]
    first.finish()
    second.finish()
    assert verify_cache(address).ok
    expected = other[SITE].clone()
    expected[:256] = acts[SITE][:256]
    if quantised is None:
        assert torch.equal(values(address, SITE), expected)
    else:
        assert torch.allclose(values(address, SITE).float(), expected.float(), rtol=0.07, atol=0.05)


def test_a_lost_writer(table, acts, machine: Machine) -> None:
    """It dies between its chunk files: another writer completes the shard on what is there."""
    address, donor = new_address(), new_address()
    other = {name: value * 2 for name, value in acts.items()}
    begun(address).close()
    written(donor, table, acts)
    of = stored(donor)
    for name in ("tokens/c.0.0", f"{SITE}/c.0.0", f"{OTHER}/c.1.0"):  # these arrived, and no commit
        objects(address).create(f"acts.zarr/{name}", [of[f"acts.zarr/{name}"]])
    assert open_cache(address, allow_incomplete=True).shards == []
    machine("second")
    written(address, table, other)
    assert verify_cache(address).ok
    assert torch.equal(values(address, SITE), torch.cat([acts[SITE][:256], other[SITE][256:]]))
    assert torch.equal(
        values(address, OTHER), torch.cat([other[OTHER][:256], acts[OTHER][256:512], other[OTHER][512:]])
    )


@pytest.mark.parametrize("quantised", ["int8", "fp8"])
def test_codes_are_codes_under_the_scales_that_are_there(table, acts, machine: Machine, quantised: str) -> None:
    """A lost writer left the scales of a shard; the next one's rows are larger, so some values are clipped by them."""
    address, donor, shapes = new_address(), new_address(), layout(quantised=quantised)
    other = {name: (value.float() * 1.3).bfloat16() for name, value in acts.items()}
    begun(address, layout=shapes).close()
    written(donor, table, acts, layout=shapes)
    left = stored(donor)[f"acts.zarr/{SITE}.scale/c.0"]
    objects(address).create(f"acts.zarr/{SITE}.scale/c.0", [left])
    machine("second")
    written(address, table, other, layout=shapes)
    assert verify_cache(address).ok
    scale = np.frombuffer(left[:-4], "<f4")[:, None]
    ratio = np.divide(other[SITE][:256].float().numpy(), scale, where=scale > 0, out=np.zeros((256, 16), np.float32))
    if quantised == "int8":
        codes = np.clip(np.rint(ratio), -127, 127)
    else:
        codes = torch.from_numpy(np.clip(ratio, -448, 448)).to(torch.float8_e4m3fn).float().numpy()
    assert torch.equal(open_cache(address).chunk(SITE, 0), torch.from_numpy(codes * scale).bfloat16())


def test_an_object_that_is_no_chunk_file(table, acts, machine: Machine) -> None:
    address = new_address()
    objects(address).create("acts.zarr/layer_01.resid_mid/c.1.0", [b"x" * 8196])
    with pytest.raises(DataError, match=r"resid_mid/c\.1\.0 has no commit, and is no chunk file") as caught:
        written(address, table, acts)
    assert "delete that object" in str(caught.value.hint)
    objects(address).delete("acts.zarr/layer_01.resid_mid/c.1.0")
    written(address, table, acts)
    assert verify_cache(address).ok


def test_ranks_on_two_machines(tmp_path, table, acts, machine: Machine) -> None:
    """Rank 1 ends first and leaves the finish; rank 0 finishes, with the bytes of one writer."""
    address = new_address()
    machine("second")
    with begun(address, share=Share(1, 2)) as other:
        assert other.missing_shards() == [1, 3]
        write_missing(other, table, acts)
        assert other.ranks_left()
    machine("first")
    with begun(address, share=Share(0, 2)) as writer:
        write_missing(writer, table, acts)
        assert not writer.ranks_left()
        writer.finish()
    written(tmp_path / "c", table, acts)
    assert stored(address) == files(tmp_path / "c")
    machine("second")
    with begun(address, share=Share(1, 2)) as again:
        assert again.complete


def test_a_plan_that_another_writer_puts_there_first(table, acts, machine: Machine) -> None:
    address = new_address()
    late = mirror_of(address)
    late.pull()
    ours = stand(late.folder, layout(), CONFIG, {"torch": "another"})
    machine("second")
    written(address, table, acts)
    assert begin(late, ours), "the plan is another writer's"
    taken = stand(late.folder, layout(), CONFIG, {"torch": "another"})
    assert taken.plan["provenance"] == {"torch": "t"}
    assert not begin(late, taken)


def test_another_config_in_the_bucket(table, acts, machine: Machine) -> None:
    address = new_address()
    begun(address).close()
    with pytest.raises(DataError, match="was begun with a different config, and holds no shard"):
        begun(address, model="n")
    written(address, table, acts)
    with pytest.raises(DataError, match=r'model: the cache has "m", this config has "n"'):
        begun(address, model="n")
    occupied = new_address()
    objects(occupied).create("photos/cat.png", [b"x"])
    with pytest.raises(DataError, match="is not a cache .* found photos"):
        begun(occupied)


def test_a_storage_without_conditions_is_refused(table, acts, machine: Machine) -> None:
    class Overwriting(Objects):
        def create(self, name: str, parts: Any) -> Entry:
            return Entry(0, "1")

    address = new_address()
    begun(address).close()
    mirror = mirror_of(address)
    mirror.objects = Overwriting(mirror.objects.store, mirror.address)
    with pytest.raises(PipelineError, match="does not know conditional writes"):
        mirror.check_conditions()


def test_copies_stay_within_their_room(table, acts, machine: Machine, monkeypatch) -> None:
    address = new_address()
    written(address, table, acts)
    folder = machine("second")
    monkeypatch.setenv(BYTES, "30000")  # of 5 · (8,196 + 4,100 + 16 · 16 · 11) bytes
    for _ in range(2):
        assert torch.equal(values(address, SITE), acts[SITE])
        np.testing.assert_array_equal(open_cache(address).tokens, table.tokens)
    kept = sum(file.stat().st_size for file in folder.rglob("c.*") if file.suffix != ".download")
    assert kept <= 30000
    monkeypatch.setenv(BYTES, "8000")
    machine("third")
    with pytest.raises(UsageError, match="one chunk file has 8,196 bytes"):
        open_cache(address).chunk(SITE, 0)


def test_reading_one_shard_fetches_the_next(table, acts, machine: Machine) -> None:
    address = new_address()
    written(address, table, acts)
    folder = machine("second")
    open_cache(address).chunk(SITE, 0)
    mirror_of(address).chunks.wait()
    assert sorted(file.name for file in (at_hand(address) / "acts.zarr" / SITE).glob("c.*")) == [
        f"c.{shard}.0" for shard in range(5)
    ]
    assert not list(folder.rglob("c.*/../" + OTHER)), "of that array alone"
    assert not (at_hand(address) / "acts.zarr" / OTHER / "c.1.0").exists()


def test_a_damaged_copy_is_fetched_again(table, acts, machine: Machine) -> None:
    address = new_address()
    written(address, table, acts)
    machine("second")
    file = at_hand(address) / "acts.zarr" / SITE / "c.1.0"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(8196))
    assert torch.equal(values(address, SITE), acts[SITE])


def test_a_damaged_object_is_refused_and_named(table, acts, machine: Machine) -> None:
    address, name = new_address(), f"acts.zarr/{SITE}/c.1.0"
    written(address, table, acts)
    there = objects(address)
    there.replace(name, [bytes(8196)], there.below()[name].tag)
    machine("second")
    cache = open_cache(address)
    with pytest.raises(DataError, match=r"resid_mid/c\.1\.0 is damaged: crc32c 527d5351|is damaged: crc32c"):
        cache.chunk(SITE, 1)
    assert torch.equal(cache.chunk(SITE, 0), acts[SITE][:256])
    report = verify_cache(address)
    assert [problem.path.name for problem in report.problems] == ["c.1.0"]
    assert f"pipeline harvest -c {address}" in str(report.hint)
    with pytest.raises(UsageError, match="--repair drops files"):
        repair_cache(address)
    # what the hint says: the commit and the chunk file go, and the same harvest writes them again
    there.delete("commits/000001.json")
    there.delete(name)
    written(address, table, acts)
    assert verify_cache(address).ok


def test_a_missing_object(table, acts, machine: Machine) -> None:
    address, name = new_address(), f"acts.zarr/{OTHER}/c.2.0"
    written(address, table, acts)
    objects(address).delete(name)
    machine("second")
    with pytest.raises(DataError, match=f"{address}/{name} is missing"):
        open_cache(address).chunk(OTHER, 2)
    assert [problem.path.name for problem in verify_cache(address).problems] == ["c.2.0"]
    with pytest.raises(DataError, match=r"c\.2\.0: found no object"):
        machine("third")
        objects(address).delete("manifest.json")
        written(address, table, acts)


def test_a_cache_grows_in_a_bucket(tmp_path, machine: Machine) -> None:
    large = token_table(96, 16, packing="document", doc_length=(4, 30))
    acts = sparse_acts(large, SITES)
    for path in (address := new_address(), tmp_path / "c"):
        for n_seq in (64, 96):
            with CacheWriter.create(path, layout(n_seq), {"n": n_seq}, {}, may_grow=["n"]) as writer:
                write_missing(writer, large, acts)
                writer.finish()
        if path == address:
            first = machine("second")
            assert open_cache(address).n_seq == 96
            machine("first")
    assert stored(address) == files(tmp_path / "c")
    assert len(open_cache(address).identities) == 2
    assert first.name == "second"


def test_another_cache_at_the_same_address(table, acts, machine: Machine) -> None:
    address = new_address()
    written(address, table, acts)
    machine("second")
    assert torch.equal(values(address, SITE), acts[SITE])
    machine("first")
    for name in objects(address).below():
        objects(address).delete(name)
    with pytest.raises(DataError, match=f"no cache at {address}"):
        at_hand(address)
        mirror_of(address).pull()
        open_cache(address)
    other = {name: value * 2 for name, value in acts.items()}
    written(address, table, other, model="n")
    machine("second")
    mirror_of(address).pull()
    assert torch.equal(values(address, SITE), other[SITE])


def test_only_mirrors_are_believed(tmp_path, table, acts, machine: Machine) -> None:
    """A folder from elsewhere that says it is a mirror reads no bucket."""
    address = new_address()
    written(address, table, acts)
    written(tmp_path / "c", table, acts)
    folder = at_hand(address)
    assert mirror_of(folder) is mirror_of(address)
    assert shown(folder) == address
    assert repair_command(folder / "manifest.json") == f"pipeline verify {address}"
    (tmp_path / "c/.mirror").mkdir()
    (tmp_path / "c/.mirror/address").write_text(address)
    assert mirror_of(tmp_path / "c") is None
    assert open_cache(tmp_path / "c").record["path"] == str(tmp_path / "c")


def test_names_that_leave_the_folder(table, acts, machine: Machine) -> None:
    """What a bucket calls its objects decides nothing about where files are written."""
    address = new_address()
    written(address, table, acts)
    there = objects(address)
    for name in (".bashrc", ".lock", ".mirror/address", "commits/evil.json", "acts.zarr/.x/zarr.json", "a b.json"):
        there.create(name, [b"{}"])
    folder = machine("second")
    assert torch.equal(values(address, SITE), acts[SITE])
    copied = {str(file.relative_to(folder / "memory")) for file in folder.rglob("*") if file.is_file()}
    base = address.removeprefix("memory://")
    assert not copied & {f"{base}/{name}" for name in (".bashrc", ".lock", "commits/evil.json", "a b.json")}
    assert (at_hand(address) / ".mirror/address").read_text().strip() == address
    assert json.loads((at_hand(address) / ".mirror/objects.json").read_text()).keys() >= {"plan.json", "manifest.json"}


def test_writers_of_one_machine_are_kept_apart(table, acts, machine: Machine) -> None:
    address = new_address()
    with begun(address), pytest.raises(PipelineError, match="is being written by another process"):
        begun(address)


def test_a_reader_beside_a_local_cache(tmp_path, table, acts, machine: Machine) -> None:
    """Sites of a cache in a bucket beside those of a folder, by `open_beside`."""
    from sparse_pipeline.shared.cache.beside import open_beside

    address = new_address()
    written(address, table, {name: value * 3 for name, value in acts.items()})
    written(tmp_path / "c", table, acts)
    machine("second")
    both = open_beside(open_cache(tmp_path / "c"), [open_cache(address)])
    assert torch.equal(both.chunk(f"{SITE}@2", 1), 3 * acts[SITE][256:512])
    whole = 5 * 8196
    assert both.through_copies([SITE]) == (0, 0)
    assert both.through_copies([SITE, f"{SITE}@2"])[0] == whole
