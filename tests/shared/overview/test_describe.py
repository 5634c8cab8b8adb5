"""Descriptions of caches and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.shared.errors import DataError
from sparse_pipeline.shared.glossary import COLUMNS
from sparse_pipeline.shared.overview.describe import describe, describe_text
from sparse_pipeline.shared.overview.find import folder_bytes
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.shared.runs.samples import SampleSet, save_samples
from sparse_pipeline.shared.runs.verify import verify_run
from tests.shared.projects import SUMMARY, make_incomplete_cache, make_run
from tests.synthetic import make_cache


def test_describe_cache(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", packing="document")
    document = describe(cache.path)
    padding = int((cache.flags & 4 != 0).sum())
    assert padding > 0
    expected: dict[str, Any] = {
        "kind": "cache",
        "format_version": 3,
        "complete": True,
        "n_tokens": cache.n_rows - padding,
        "n_sequences": 64,
        "ctx": 16,
        "n_rows": 1024,
        "shards": {"committed": 4, "total": 4},
        "bytes": folder_bytes(cache.path),
        "identity": cache.identity,
    }
    assert {key: document[key] for key in expected} == expected
    site = document["sites"]["layer_01.resid_mid"]
    assert (site["shape"], site["logical_dtype"]) == ([1024, 32], "bfloat16")
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert "complete" in describe_text(document)


def test_describe_incomplete_cache(tmp_path: Path) -> None:
    make_incomplete_cache(tmp_path / "half")
    document = describe(tmp_path / "half")
    assert (document["complete"], document["shards"]) == (False, {"committed": 1, "total": 4})
    assert document["n_tokens"] == 256
    assert describe_text(document).endswith(f"\nnext: pipeline harvest -c {tmp_path / 'half'}")


def test_describe_run(tmp_path: Path) -> None:
    document = describe(make_run(tmp_path, "a").path)
    assert document["summary"] == SUMMARY
    assert (document["architecture"], document["variant"], document["d_in"]) == ("topk", "topk", 4)
    assert document["checkpoints"] == ["step_00000002"]
    lines = describe_text(document).splitlines()
    (fvu,) = (line.split() for line in lines if line.startswith("  FVU"))
    assert fvu == ["FVU", "0.2500", *COLUMNS["FVU"].split()]
    assert "  3 steps, 96 tokens in 2s" in lines
    assert max(map(len, lines[1:])) <= 80
    stopped = describe(make_run(tmp_path, "b", finished=False).path)
    assert (stopped["complete"], stopped["summary"]) == (False, None)
    assert stopped["architecture"] == "topk"
    assert stopped["next"] == f"pipeline train -c {tmp_path / 'b'} --resume"
    assert describe_text(stopped).endswith(f"\nnext: {stopped['next']}")
    assert document["next"] is None
    with pytest.raises(DataError) as caught:
        open_run(tmp_path / "b")
    assert caught.value.hint == stopped["next"]


def test_describe_what_is_neither(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a cache"):
        describe(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        describe(tmp_path / "x")


def test_samples_are_described_and_verified(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a")
    assert describe(run.path)["samples"] is None
    save_samples(run.path, SampleSet(9, 1, {}, ()))
    statistics = {"step": 9, "samples": {"total": 1234}, "latents": {"with_samples": 7}}
    (run.path / "samples/statistics.json").write_text(json.dumps(statistics))
    document = describe(run.path)
    assert document["samples"] == {**statistics, "table": str(run.path / "samples/statistics.md")}
    assert "samples: 1,234 of 7 latents after step 9" in describe_text(document)
    assert verify_run(run.path).ok
    (run.path / "samples/samples.json").write_text("{")
    assert "samples.json is not valid JSON" in verify_run(run.path).problems[0]
