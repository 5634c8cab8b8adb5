"""A finished cache grows by tokens and by sites: against a harvest of the larger settings in one go, through kills."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from sparse_pipeline.harvest.config import HarvestConfig, cache_path
from sparse_pipeline.harvest.forward import Forward
from sparse_pipeline.harvest.job import Job
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.shared.cache import Cache, open_cache, verify_cache
from sparse_pipeline.shared.cache.documents import read_documents
from sparse_pipeline.shared.config.settings import to_dict
from sparse_pipeline.shared.errors import DataError
from sparse_pipeline.shared.overview.find import frozen_settings
from sparse_pipeline.shared.overview.status import status
from tests.harvest.conftest import CTX
from tests.harvest.test_run import _CHILD, ONE_THREAD, config_for
from tests.shared.cache.folders import contents

SITES = ("layer_01.resid_mid", "layer_01.mlp_out")
MORE = (*SITES, "layer_00.resid_post", "layer_02.mlp_in")


def config(tiny_model: Path, texts_file: Path, where: Path, sequences: int = 48, **changes: Any) -> HarvestConfig:
    """Shards of 8 sequences, calls of 16."""
    sizes = {"tokens": sequences * CTX, "batch_tokens": 16 * CTX, "name": "grown"}
    return config_for(tiny_model, texts_file, where, **(sizes | changes))


def kept(path: Path) -> dict[str, bytes]:
    """Every file but the metadata that say how long the arrays are, and the manifest."""
    return {name: data for name, data in contents(path).items() if not name.endswith(("zarr.json", "manifest.json"))}


def killed(settings: HarvestConfig, fatal: int, folder: Path, root: Path) -> None:
    """Runs the harvest in a process that dies in the middle of its n-th write."""
    file = folder / "settings.yaml"
    file.write_text(json.dumps(to_dict(settings)))
    command = [sys.executable, "-c", _CHILD, str(file), str(fatal)]
    child = subprocess.run(command, cwd=root, env=ONE_THREAD, timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL


def unsigned(commit: bytes) -> dict[str, Any]:
    """A commit without what names the cache that it belongs to."""
    return {key: value for key, value in json.loads(commit).items() if key not in ("identity", "seal")}


def rows(cache: Cache, site: str) -> torch.Tensor:
    return torch.cat([cache.chunk(site, shard) for shard in cache.shards])


def assert_same_content(grown: Cache, whole: Cache) -> None:
    """All data rows, in order, with what is said of them."""
    data = ~(grown.tokens[:, 0] == 0) | (grown.flags[:, 0] != 4)
    assert data.sum() == whole.n_seq
    for name in ("tokens", "doc_id", "pos_in_doc", "flags"):
        np.testing.assert_array_equal(getattr(grown, name)[data], getattr(whole, name))
    assert list(grown.sites) == list(whole.sites)
    for site in whole.sites:
        assert torch.equal(rows(grown, site)[torch.from_numpy(np.repeat(data, grown.ctx))], rows(whole, site))
    assert list(read_documents(grown.path)) == list(read_documents(whole.path))
    assert grown.manifest["n_tokens"] == whole.manifest["n_tokens"]


@pytest.mark.slow
def test_more_tokens_through_a_kill_are_the_bytes_of_one_go(
    tiny_model: Path, texts_file: Path, tmp_path: Path, root: Path
) -> None:
    small, large = (config(tiny_model, texts_file, tmp_path, n) for n in (48, 96))
    path = harvest(small).path
    before, first = kept(path), open_cache(path)
    planned = plan(large)
    assert planned.grows
    assert "grows; 6 of 12 shards" in str(planned)
    assert kept(path) == before
    killed(large, 45, tmp_path, root)
    assert verify_cache(path).ok  # still the cache that it was
    assert (open_cache(path).identity, open_cache(path).n_seq) == (first.identity, 48)
    assert {name: data for name, data in kept(path).items() if name in before} == before
    (entry,) = status(tmp_path, tmp_path / "runs").caches
    assert (entry["complete"], entry["growing"], entry["next"]) == (True, True, f"pipeline harvest -c {path}")
    assert frozen_settings(path)["harvest"]["tokens"] == 96 * CTX
    left = plan(large)
    files_before = set(path.glob("acts.zarr/*/c.*"))
    result = harvest(large)
    assert 0 < result.shards_written < 6
    new = sum(p.stat().st_size for p in set(path.glob("acts.zarr/*/c.*")) - files_before)
    assert new <= left.bytes_to_write <= planned.bytes_to_write == 6 * sum(first.layout.files_of(0).values())
    assert {name: data for name, data in kept(path).items() if name in before} == before

    one_go = harvest(dataclasses.replace(large, cache_dir=tmp_path / "whole"))
    grown, whole = open_cache(path), open_cache(one_go.path)
    assert_same_content(grown, whole)
    theirs, ours = contents(whole.path), contents(path)
    for name in theirs.keys() - {"plan.json", ".plan.json.copy", "manifest.json", "documents.jsonl"}:
        if name.endswith("zarr.json"):
            assert json.loads(ours[name]) == json.loads(theirs[name]), name
        elif name.startswith("commits/"):  # each names the generation that wrote it
            assert unsigned(ours[name]) == unsigned(theirs[name]), name
        else:
            assert ours[name] == theirs[name], name
    assert grown.identity == whole.identity
    assert grown.manifest["statistics"] == whole.manifest["statistics"]
    assert grown.manifest["massive"] == whole.manifest["massive"]
    assert ours["documents.1.jsonl"] == theirs["documents.jsonl"]
    assert verify_cache(path).ok
    assert zarr.open_group(path / "acts.zarr", mode="r")[SITES[0]].shape == (96 * CTX, 24)

    again = contents(path)
    assert harvest(large).shards_written == harvest(small).shards_written == 0  # both are there
    assert contents(path) == again
    was = open_cache(path, identity=first.identity)
    assert (was.n_seq, was.shards, was.identity, was.complete) == (48, first.shards, first.identity, True)
    assert was.stats(SITES[0]).to_dict() == first.stats(SITES[0]).to_dict()
    assert "massive" not in was.manifest  # found by a pass over its own rows
    assert was.outliers(SITES[0]).to_dict() == first.manifest["massive"][SITES[0]]
    np.testing.assert_array_equal(was.tokens, first.tokens)
    assert was.manifest["n_tokens"] == first.manifest["n_tokens"]
    assert grown.identities == (first.identity, grown.identity)


def test_growing_past_a_short_shard_leaves_its_places_padding(
    tiny_model: Path, texts_file: Path, tmp_path: Path
) -> None:
    """45 sequences, then 70, then 90: 3 and 7 places stay empty. A damaged shard of each part is written again."""
    steps = [config(tiny_model, texts_file, tmp_path, n, batch_tokens=8 * CTX) for n in (45, 70, 90)]
    path = harvest(steps[0]).path
    for step, n_seq, padding in ((steps[1], 73, 3), (steps[2], 96 + 4, 3 + 7)):
        before = kept(path)
        assert harvest(step).n_sequences == n_seq
        assert {name: data for name, data in kept(path).items() if name in before} == before
        cache = open_cache(path)
        assert (cache.flags == 4).sum() == padding * CTX
        assert verify_cache(path).ok
    assert cache.config["grown_after"] == [45, 73]
    whole = open_cache(harvest(dataclasses.replace(steps[2], cache_dir=tmp_path / "whole")).path)
    assert_same_content(cache, whole)
    assert cache.identity != whole.identity  # the rows have other numbers
    done = contents(path)
    for shard in (5, 6, 12):
        (path / "commits" / f"{shard:06d}.json").unlink()
    assert harvest(steps[2]).shards_written == 3
    assert contents(path) == done
    for n, identity in zip((45, 73), cache.identities, strict=False):
        assert open_cache(path, identity=identity).n_seq == n


@pytest.mark.slow
def test_further_sites_through_a_kill_on_the_stored_tokens(
    tiny_model: Path, texts_file: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short last shard, one of the new sites quantised. The dataset is not read, and no old site is computed."""
    small = config(tiny_model, texts_file, tmp_path, 45)
    large = dataclasses.replace(small, sites=MORE, storage_of={MORE[3]: "int8"})
    path = harvest(small).path
    before, first = kept(path), open_cache(path)
    killed(large, 24, tmp_path, root)
    assert verify_cache(path).ok
    assert list(open_cache(path).sites) == list(SITES)
    assert kept(path).items() >= before.items()

    def unread(self: Job) -> Any:
        raise AssertionError("the dataset is read")

    with monkeypatch.context() as patched:
        patched.setattr(Job, "blocks", unread)
        assert 0 < harvest(large).shards_written < 6
    assert kept(path).items() >= before.items()
    grown = open_cache(path)
    whole = open_cache(harvest(dataclasses.replace(large, cache_dir=tmp_path / "whole")).path)
    assert_same_content(grown, whole)
    assert grown.identity == whole.identity
    assert grown.manifest["statistics"] == whole.manifest["statistics"]
    for file in whole.path.glob("acts.zarr/*/c.*"):
        assert (path / file.relative_to(whole.path)).read_bytes() == file.read_bytes()
    assert verify_cache(path).ok
    was = open_cache(path, identity=first.identity)
    assert list(was.sites) == list(SITES)
    assert was.stats(SITES[1]).to_dict() == first.stats(SITES[1]).to_dict()

    file, _ = grown.chunk_file(f"{MORE[3]}.scale", 2)
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    assert [problem.path for problem in verify_cache(path).problems] == [file]
    (path / "commits/000002.1.json").unlink()
    with pytest.raises(DataError, match=r"5 of 6 shards are committed \(shard 2 is not\)"):
        open_cache(path)
    assert [p.path.name for p in verify_cache(path).problems] == ["000002.1.json"]
    assert harvest(large).shards_written == 1
    assert verify_cache(path).ok

    # and more tokens after that: new shards have all sites in one commit
    longer = dataclasses.replace(large, tokens=64 * CTX)
    assert harvest(longer).n_sequences == 67
    assert kept(path).items() >= before.items()
    assert verify_cache(path).ok
    assert_same_content(
        open_cache(path), open_cache(harvest(dataclasses.replace(longer, cache_dir=tmp_path / "longer")).path)
    )
    (path / "commits/000001.json").unlink()  # of the old sites; the new ones are not touched
    done = contents(path)
    assert harvest(longer).shards_written == 1
    assert contents(path).items() >= done.items()
    assert verify_cache(path).ok


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": 40 * CTX}, "holds more sequences than this config requires"),
        ({"tokens": 96 * CTX, "separator": "none"}, 'harvest.separator: the cache has "eos", this config has "none"'),
        ({"sites": (SITES[0], "layer_00.mlp_in")}, "holds sites that this config lacks or stores differently"),
        ({"sites": MORE, "storage_of": {SITES[0]: "fp8"}}, "holds sites that this config lacks or stores differently"),
        ({"tokens": 96 * CTX, "storage": "fp8"}, "harvest.storage: the cache has"),
    ],
)
def test_what_differs_otherwise_does_not_grow(
    tiny_model: Path, texts_file: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    made = config(tiny_model, texts_file, tmp_path)
    path = harvest(made).path
    before = contents(path)
    other = dataclasses.replace(made, **changes)
    with pytest.raises(DataError) as caught:
        harvest(other)
    assert says in caught.value.message
    assert plan(other).conflicts
    assert contents(path) == before


def test_what_is_unfinished_does_not_grow(
    tiny_model: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tiny_model, texts_file, tmp_path)
    harvest(made)
    longer = dataclasses.replace(made, tokens=96 * CTX)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Forward, "compute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            harvest(longer)
    with pytest.raises(DataError, match="only a finished cache can grow"):
        harvest(dataclasses.replace(made, tokens=200 * CTX))
    assert harvest(made).shards_written == 0  # it still is what it was
    assert harvest(longer).shards_written == 6


def test_a_dataset_that_is_all_there_has_nothing_to_grow_by(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(texts_file.read_text()[:4000])
    made = config(tiny_model, tmp_path / "t.txt", tmp_path, 10_000)
    path = harvest(made).path
    sequences = open_cache(path).n_seq
    assert sequences < 10_000
    with pytest.raises(DataError, match=rf"holds its whole dataset already \({sequences} sequences\)"):
        harvest(dataclasses.replace(made, tokens=20_000 * CTX))
    assert harvest(dataclasses.replace(made, sites=MORE)).n_sequences == sequences
    assert verify_cache(path).ok


def test_prompts_do_not_grow_by_tokens(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"text": f"import number {n}"}) + "\n" for n in range(12)))
    made = config(tiny_model, file, tmp_path, 6, packing="prompts", separator="none")
    harvest(made)
    with pytest.raises(DataError, match="harvest.tokens"):
        harvest(dataclasses.replace(made, tokens=12 * CTX))
    assert harvest(dataclasses.replace(made, sites=MORE)).n_sequences == 6


def test_every_layer_by_one_name(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    """Against the same sites spelled out: the same arrays, and the same bytes on the disk beforehand."""
    shape = {"tokens": 8 * CTX}
    one = config(tiny_model, texts_file, tmp_path, sites=("layer_*.resid_mid", "layer_01.mlp_out"), **shape)
    planned = plan(one)
    names = [site.name for site in planned.layout.sites]
    n_layers = len(names) - 1
    assert names == [*(f"layer_{n:02d}.resid_mid" for n in range(n_layers)), "layer_01.mlp_out"]
    assert n_layers > 2
    document = planned.to_dict()
    width = planned.layout.sites[0].width
    assert {site["bytes"] for site in document["sites"].values()} == {document["rows"] * width * 2}
    spelled = config(tiny_model, texts_file, tmp_path, sites=tuple(names), **shape | {"name": "spelled"})
    harvest(one)
    harvest(spelled)
    found, expected = open_cache(tmp_path / "grown"), open_cache(tmp_path / "spelled")
    assert list(found.sites) == names
    assert found.config != expected.config
    for name in names:
        assert torch.equal(rows(found, name), rows(expected, name))


def test_storage_of_every_layer_and_the_caches_name() -> None:
    settings = HarvestConfig(sites=("layer_*.resid_mid", "layer_02.mlp_out"), storage_of={"layer_*.resid_mid": "fp8"})
    assert settings.storage_at("layer_07.resid_mid") == "fp8"
    assert settings.storage_at("layer_02.mlp_out") == "bfloat16"
    assert cache_path(settings).name.startswith("demo-layer_all.resid_mid+layer_02.mlp_out-")
