from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.shared.cache import Cache, CacheWriter, verify_cache
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.errors import DataError
from tests.synthetic import make_cache, sparse_acts, token_table, write_missing


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path / "c", n_seq=70, ctx=16, packing="document")


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def rewrite(file: Path, change) -> None:
    value = json.loads(file.read_bytes())
    change(value)
    file.write_text(json.dumps(value))


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
    assert report.hint == f"rm {cache.path / 'commits/000003.json'} && pipeline harvest -c {cache.path}"


def test_a_flipped_bit_in_the_trailer(cache: Cache) -> None:
    file = cache.path / "acts.zarr/layer_01.mlp_out/c.3.0"
    flip(file, -1)
    (problem,) = verify_cache(cache.path).problems
    assert problem.path == file
    assert problem.found.startswith("a trailer of ")


def test_the_hint_mends_the_cache(cache: Cache) -> None:
    flip(cache.path / "acts.zarr/layer_01.mlp_out/c.3.0", 9)
    rewrite(cache.path / "acts.zarr/flags/zarr.json", lambda m: m.update(data_type="int16"))
    named = verify_cache(cache.path).remove
    assert {str(file.relative_to(cache.path)) for file in named} == {"acts.zarr/flags/zarr.json", "commits/000003.json"}
    for file in named:
        file.unlink()
    assert verify_cache(cache.path).hint == f"pipeline harvest -c {cache.path}", "nothing that is gone is to be removed"
    table = token_table(70, 16, packing="document")
    with CacheWriter.create(cache.path, cache.layout, cache.config, {}) as writer:
        write_missing(writer, table, sparse_acts(table, dict.fromkeys(cache.sites, 32)))
        writer.finish()
    assert verify_cache(cache.path).ok


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
        (lambda c: c["statistics"]["layer_01.mlp_out"].update(nonfinite=3), "rows of layer_01.mlp_out counted"),
        (lambda c: one_row_from_rest_to_first(c["statistics"]["layer_01.mlp_out"]), "17 rows of layer_01.mlp_out at"),
        (lambda c: c["files"].pop("flags/c.1.0"), "another set of chunk files"),
        (lambda c: c.update(shard=2), "commits shard 2, expected 1"),
        (lambda c: c.pop("files"), "is not a commit of this format"),
    ],
)
def test_a_commit_that_does_not_say_what_is_there(cache: Cache, change, found: str) -> None:
    file = cache.path / "commits/000001.json"
    rewrite(file, change)
    problems = verify_cache(cache.path).problems
    assert any(problem.path == file and found in problem.found for problem in problems), problems


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m.update(n_tokens=5), "n_tokens 5"),
        (lambda m: m.update(bytes=0), "bytes 0"),
        (lambda m: m.update(commits_sha256="x"), "commits_sha256 x"),
        (lambda m: m["statistics"].pop("layer_01.mlp_out"), "statistics of layer_01.mlp_out"),
        (lambda m: m["massive"]["layer_01.mlp_out"].update(median_norm=1.0), "massive rows of layer_01.mlp_out"),
        (lambda m: m["massive"].pop("layer_01.resid_mid"), "massive rows of layer_01.resid_mid"),
        (lambda m: m["config"].update(model="other"), "identity"),
    ],
)
def test_a_manifest_that_does_not_say_what_is_there(cache: Cache, change, found: str) -> None:
    rewrite(cache.path / "manifest.json", change)
    (problem,) = verify_cache(cache.path).problems
    assert problem.found.startswith(found)


def test_a_manifest_without_massive_rows_is_sound(cache: Cache) -> None:
    rewrite(cache.path / "manifest.json", lambda m: m.pop("massive"))
    assert verify_cache(cache.path).ok


def test_array_metadata_that_would_mislead_zarr(cache: Cache) -> None:
    file = cache.path / "acts.zarr/layer_01.mlp_out/zarr.json"
    rewrite(file, lambda m: m.update(shape=[1120, 31], data_type="int16"))
    found = [(problem.path, problem.found) for problem in verify_cache(cache.path).problems]
    assert found == [(file, "shape [1120, 31]"), (file, 'data_type "int16"')]
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
