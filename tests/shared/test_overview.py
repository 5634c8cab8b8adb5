from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_pipeline.shared.cache import Layout
from sparse_pipeline.shared.cache.writer import CacheWriter
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.shared.overview import (
    describe,
    describe_text,
    folder_bytes,
    frozen_settings,
    kind_of,
    status,
    verify_run,
)
from sparse_pipeline.shared.runs.folder import Run, create_run, open_run
from sparse_pipeline.shared.runs.samples import SampleSet, save_samples
from tests.synthetic import make_cache, sparse_acts, token_table

SUMMARY = {"steps": 3, "tokens": 96, "fvu": 0.25, "fvu_with_bos": 0.2, "l0": 4.0, "dead": 0, "seconds": 1.5}


def make_run(folder: Path, name: str, finished: bool = True, **summary: Any) -> Run:
    run = create_run(folder, name, {"variant": "topk", "coder": {"architecture": "topk"}}, {})
    coder = build_coder(TopKConfig(latents=8, k=2), 4, 4, tied=True)
    run.save_checkpoint(2, coder.state_dict(), {"m": torch.ones(3)}, {"step": 2})
    run.log({"step": 2, "loss": 0.5})
    if finished:
        run.finish(coder, SUMMARY | summary, {"cache": {"path": "c", "identity": "i"}})
    return run


def make_incomplete_cache(path: Path) -> None:
    cache = make_cache(path.parent / "whole")
    layout = Layout(cache.n_seq, cache.ctx, cache.layout.shard_rows, cache.layout.sites)
    table = token_table(cache.n_seq, cache.ctx)
    acts = sparse_acts(table, {site.name: site.width for site in layout.sites})
    with CacheWriter.create(path, layout, {"model": "synthetic"}, {}) as writer:
        seqs, rows = layout.seqs_of(0), layout.rows_of(0)
        writer.write_shard(
            0,
            *(part[: seqs.stop] for part in (table.tokens, table.doc_id, table.pos_in_doc, table.flags)),
            {name: value[: rows.stop] for name, value in acts.items()},
        )
    shutil.rmtree(path.parent / "whole")


def test_kind_of(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    make_run(tmp_path, "run")
    (tmp_path / "other").mkdir()
    kinds = [kind_of(tmp_path / name) for name in ("cache", "run", "other", "nothing")]
    assert kinds == ["cache", "run", None, None]


def test_status_of_nothing(tmp_path: Path) -> None:
    found = status(tmp_path / "cache", tmp_path / "runs")
    assert found.to_dict() == {"caches": [], "runs": [], "next": "pipeline harvest"}
    assert str(found) == "no caches and no runs yet\nnext: pipeline harvest"


def test_status_names_what_is_incomplete_and_the_next_command(tmp_path: Path) -> None:
    caches, runs = tmp_path / "cache", tmp_path / "runs"
    make_incomplete_cache(caches / "half")
    (found,) = status(caches, runs).caches
    assert (found["complete"], found["progress"], found["problem"]) == (False, "1 of 4 shards", None)
    assert found["next"] == f"pipeline harvest -c {caches / 'half'}"
    assert status(caches, runs).next == ""

    cache = make_cache(caches / "whole")
    assert status(caches, runs, caches / "whole").next == "pipeline train"
    for trained_on in (caches / "half", caches / "of-the-settings"):
        assert status(caches, runs, trained_on).next == f"pipeline train --set train.cache={caches / 'whole'}"
    whole = status(caches, runs).caches[1]
    assert (whole["name"], whole["complete"], whole["n_tokens"]) == ("whole", True, cache.manifest["n_tokens"])
    assert whole["bytes"] == sum(file.stat().st_size for file in cache.path.rglob("*") if file.is_file())

    make_run(runs, "stopped", finished=False)
    (run,) = status(caches, runs).runs
    assert (run["complete"], run["progress"]) == (False, "at step_00000002")
    assert run["next"] == f"pipeline train -c {runs / 'stopped'} --resume"

    make_run(runs, "done")
    assert status(caches, runs).next == "pipeline analyze"
    text = str(status(caches, runs))
    assert "  FVU 0.2500" in text
    make_run(runs, "heldout", evaluated_on="heldout")
    assert "  held-out FVU 0.2500" in str(status(caches, runs))
    assert text.splitlines()[-1] == "next: pipeline analyze"


def test_status_survives_damage(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache" / "a")
    (cache.path / "manifest.json").write_text("{")
    run = make_run(tmp_path / "runs", "b")
    (run.path / "final/config.json").write_text("{")
    found = status(tmp_path / "cache", tmp_path / "runs")
    assert found.caches[0]["next"] == f"pipeline verify {cache.path}"
    assert found.runs[0]["next"] == f"pipeline verify {run.path}"
    assert str(found).count("damaged") == 2


def test_describe_cache(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", packing="document")
    document = describe(cache.path)
    padding = int((cache.flags & 4 != 0).sum())
    assert padding > 0
    expected: dict[str, Any] = {
        "kind": "cache",
        "format_version": 1,
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
    assert "fvu: 0.25" in describe_text(document)
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


def test_frozen_settings(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "caches" / "mine", config={"harvest": {"model": "m", "ctx": 16}})
    found = frozen_settings(cache.path)
    assert found == {"harvest": {"model": "m", "ctx": 16, "cache_dir": str(tmp_path / "caches"), "name": "mine"}}
    assert frozen_settings(make_run(tmp_path, "r").path)["train"]["variant"] == "topk"
    with pytest.raises(UsageError, match="neither a cache nor a run"):
        frozen_settings(tmp_path)


def test_verify_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a")
    report = verify_run(run.path)
    assert report.ok
    assert report.complete
    assert report.hint is None
    coder = run.load_coder()
    assert report.tensors == len(coder.state_dict()) * 2 + 1

    file = run.path / "checkpoints/step_00000002/coder.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with torch.no_grad():
        coder.b_dec[0] = float("inf")
    run.finish(coder, SUMMARY)
    (run.path / "metrics.jsonl").write_text("{\n")
    report = verify_run(run.path)
    assert not report.ok
    assert all(part in text for part, text in zip(("is damaged", "b_dec", "JSON lines"), report.problems, strict=True))
    assert report.to_dict()["problems"] == report.problems
    assert str(report).endswith("3 problems")

    assert str(report).startswith(f"{run.path}: 1 checkpoint, ")
    (run.path / "final/coder.safetensors").unlink()
    assert any("is missing" in text for text in verify_run(run.path).problems)


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
    assert "samples.json is no file of samples" in verify_run(run.path).problems[0]
