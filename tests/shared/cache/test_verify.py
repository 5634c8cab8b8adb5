from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.shared.cache import Cache, CacheWriter, open_cache, verify_cache
from sparse_pipeline.shared.cache.repair import repair_cache
from sparse_pipeline.shared.cache.stats import encode_vector
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.errors import DataError
from tests.sealed import flip, reseal
from tests.shared.cache.folders import contents
from tests.synthetic import make_cache, sparse_acts, token_table, write_missing


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path / "c", n_seq=70, ctx=16, packing="document")


def test_a_sound_cache(cache: Cache) -> None:
    text = io.StringIO()
    report = verify_cache(cache.path, Console(stream=text))
    assert report.ok
    assert report.complete
    assert report.to_dict() == {
        "path": str(cache.path),
        "ok": True,
        "complete": True,
        "shards": 5,
        "bytes": cache.layout.bytes_on_disk(),
        "problems": [],
        "notes": [],
    }
    assert "verify" in text.getvalue()
    assert str(report).endswith("complete\nok")


@pytest.mark.parametrize("array", ["tokens", "doc_id", "pos_in_doc", "flags", "layer_01.mlp_out"])
@pytest.mark.parametrize("at", [0, 57, -5])
def test_one_flipped_bit_is_found_and_named(cache: Cache, array: str, at: int) -> None:
    file = cache.path / "acts.zarr" / array / "c.3.0"
    flip(file, at)
    report = verify_cache(cache.path)
    assert [problem.path for problem in report.problems] == [file]
    assert report.problems[0].found.startswith("crc32c ")
    assert str(file) in str(report)
    assert report.hint == f"pipeline verify {cache.path} --repair"


def test_a_flipped_bit_in_the_trailer(cache: Cache) -> None:
    file = cache.path / "acts.zarr/layer_01.mlp_out/c.3.0"
    flip(file, -1)
    (problem,) = verify_cache(cache.path).problems
    assert problem.path == file
    assert problem.found.startswith("a trailer of ")


def finish(cache: Cache) -> None:
    """The harvest of the cache, in a test's terms."""
    table = token_table(70, 16, packing="document")
    with CacheWriter.create(cache.path, cache.layout, cache.config, {"made_by": "tests"}) as writer:
        write_missing(writer, table, sparse_acts(table, dict.fromkeys(cache.sites, 32)))
        if not writer.complete:
            writer.finish()


def test_repair_and_the_next_harvest_give_the_bytes_of_a_sound_cache(cache: Cache) -> None:
    whole = contents(cache.path)
    flip(cache.path / "acts.zarr/layer_01.mlp_out/c.3.0", 9)
    flip(cache.path / "commits/000001.json", 300)
    flip(cache.path / "acts.zarr/flags/zarr.json", 40)
    flip(cache.path / "plan.json", 11)
    (cache.path / "acts.zarr/tokens/zarr.json").unlink()
    done = repair_cache(cache.path)
    assert {str(file.relative_to(cache.path)) for file in done.dropped} == {
        "commits/000001.json",
        "commits/000003.json",
        "acts.zarr/layer_01.mlp_out/c.3.0",
    }
    assert {str(file.relative_to(cache.path)) for file in done.written} == {
        "plan.json",
        "acts.zarr/flags/zarr.json",
        "acts.zarr/tokens/zarr.json",
    }
    assert done.again == ("2 shards",)
    assert done.next == f"pipeline harvest -c {cache.path}"
    after = repair_cache(cache.path)
    assert (after.dropped, after.written, after.next) == ((), (), done.next), "what is gone is not dropped again"
    finish(cache)
    assert contents(cache.path) == whole
    assert verify_cache(cache.path).hint is None


def test_a_damaged_commit_never_becomes_the_truth(cache: Cache) -> None:
    """A flipped bit in the sums of a commit, whose manifest is then written again from it."""
    whole = contents(cache.path)
    data = (cache.path / "commits/000002.json").read_bytes()
    flip(cache.path / "commits/000002.json", data.index(b'"sum":') + 12, 0)
    (cache.path / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"000002\.json is damaged: sha256") as caught:
        finish(cache)
    assert caught.value.hint == f"pipeline verify {cache.path} --repair"
    repair_cache(cache.path)
    finish(cache)
    assert contents(cache.path) == whole


def test_a_shard_with_its_commit_from_another_cache_is_foreign(cache: Cache, tmp_path: Path) -> None:
    whole = contents(cache.path)
    other = make_cache(tmp_path / "other", n_seq=70, ctx=16, packing="document", seed=1)
    for name in other.layout.files_of(3):
        (cache.path / "acts.zarr" / name).write_bytes((other.path / "acts.zarr" / name).read_bytes())
    commit = "commits/000003.json"
    (cache.path / commit).write_bytes((other.path / commit).read_bytes())
    (cache.path / "manifest.json").unlink()
    with pytest.raises(DataError, match="belongs to another cache"):
        finish(cache)
    (problem,) = verify_cache(cache.path).problems
    assert problem.path == cache.path / commit
    repair_cache(cache.path)
    finish(cache)
    assert contents(cache.path) == whole


def test_statistics_that_are_not_those_of_the_rows(cache: Cache) -> None:
    """Sealed again after the change: a program that summed wrongly."""
    other = open_cache(cache.path)
    wrong = encode_vector(other.stats("layer_01.mlp_out").rest.sum * 1.01)
    for change in ({"sum": wrong}, {"sum_sq": wrong}, {"sum_norm": 3.0}):
        reseal(
            cache.path / "commits/000001.json",
            lambda c, x=change: c["statistics"]["layer_01.mlp_out"]["rest"].update(x),
        )
        (problem,) = verify_cache(cache.path).problems
        assert problem.found == "statistics of layer_01.mlp_out that differ"


def test_truncated_missing_and_uncommitted(cache: Cache) -> None:
    short = cache.path / "acts.zarr/layer_01.mlp_out/c.0.0"
    short.write_bytes(short.read_bytes()[:-1])
    gone = cache.path / "acts.zarr/flags/c.1.0"
    gone.unlink()
    commit = cache.path / "commits/000004.json"
    commit.unlink()
    report = verify_cache(cache.path)
    assert not report.complete
    assert {problem.path: problem.found for problem in report.problems} == {
        commit: "no commit",
        short: "16,387 bytes",
        gone: "no file",
    }


def one_row_from_rest_to_first(stats: dict[str, Any]) -> None:
    stats["first"]["n"] += 1
    stats["rest"]["n"] -= 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda c: c.update(sequences=15), "15 sequences"),
        (lambda c: c.update(tokens=1), "1 tokens"),
        (lambda c: c.update(tokens_sha256="0" * 64), "a token slice with sha256 0000"),
        (lambda c: c["statistics"]["layer_01.mlp_out"].update(nonfinite=3), "statistics of layer_01.mlp_out that"),
        (lambda c: one_row_from_rest_to_first(c["statistics"]["layer_01.mlp_out"]), "statistics of layer_01.mlp_out"),
        (lambda c: c["statistics"].pop("layer_01.mlp_out"), "statistics of layer_01.mlp_out that differ"),
        (lambda c: c["files"].pop("flags/c.1.0"), "another set of chunk files"),
        (lambda c: c.update(shard=2), "commits shard 2, expected 1"),
        (lambda c: c.pop("files"), "files: Field required"),
    ],
)
def test_a_commit_that_does_not_say_what_is_there(cache: Cache, change, found: str) -> None:
    file = cache.path / "commits/000001.json"
    reseal(file, change)
    problems = verify_cache(cache.path).problems
    assert any(problem.path == file and found in problem.found for problem in problems), problems


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m.update(n_tokens=5), "n_tokens 5"),
        (lambda m: m.update(bytes=0), "bytes 0"),
        (lambda m: m.update(commits_sha256="0" * 64), "commits_sha256 0000"),
        (lambda m: m["statistics"].pop("layer_01.mlp_out"), "statistics of layer_01.mlp_out"),
        (lambda m: m["massive"]["layer_01.mlp_out"].update(median_norm=1.0), "massive rows of layer_01.mlp_out"),
        (lambda m: m["massive"].pop("layer_01.resid_mid"), "massive rows of layer_01.resid_mid"),
        (lambda m: m["config"].update(model="other"), "a config that differs"),
        (lambda m: m.update(provenance={}), "a provenance that differs"),
        (lambda m: m["layout"].update(ctx=32), "another layout"),
    ],
)
def test_a_manifest_that_does_not_say_what_is_there(cache: Cache, change, found: str) -> None:
    reseal(cache.path / "manifest.json", change)
    (problem,) = verify_cache(cache.path).problems
    assert problem.found.startswith(found)


def test_a_manifest_without_massive_rows_is_sound(cache: Cache) -> None:
    reseal(cache.path / "manifest.json", lambda m: m.pop("massive"))
    assert verify_cache(cache.path).ok


def test_array_metadata_that_would_mislead_zarr(cache: Cache) -> None:
    file = cache.path / "acts.zarr/layer_01.mlp_out/zarr.json"
    file.write_bytes(file.read_bytes().replace(b'"uint16"', b'"int16"'))
    assert [(one.path, one.found) for one in verify_cache(cache.path).problems] == [(file, 'data_type "int16"')]
    file.unlink()
    assert verify_cache(cache.path).problems[0].expected == "array metadata"


def test_an_unfinished_cache_is_sound_and_not_complete(cache: Cache) -> None:
    (cache.path / "manifest.json").unlink()
    (cache.path / "commits/000002.json").unlink()
    report = verify_cache(cache.path)
    assert (report.ok, report.complete, report.shards) == (True, False, 4)
    assert "not finished" in str(report)


def test_no_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cache at"):
        verify_cache(tmp_path)
