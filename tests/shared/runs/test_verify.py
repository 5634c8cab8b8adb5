"""Damage in a run is found and named."""

from __future__ import annotations

from pathlib import Path

import torch

from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.runs.folder import create_run
from sparse_pipeline.shared.runs.repair import repair_run
from sparse_pipeline.shared.runs.verify import verify_run
from tests.sealed import flip
from tests.shared.projects import SUMMARY, make_run


def test_verify_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a")
    report = verify_run(run.path)
    assert report.ok
    assert report.complete
    assert report.hint is None
    coder = run.load_coder()
    assert report.tensors == len(coder.state_dict()) * 2 + 1

    flip(run.path / "checkpoints/step_00000002/coder.safetensors", -1)
    with torch.no_grad():
        coder.b_dec[0] = float("inf")
    run.finish(coder, SUMMARY)
    (run.path / "metrics.jsonl").write_text("{\n")
    report = verify_run(run.path)
    assert not report.ok
    assert all(
        part in text for part, text in zip(("is damaged", "b_dec", "metrics.jsonl"), report.problems, strict=True)
    )
    assert report.to_dict()["problems"] == report.problems
    assert str(report).endswith("3 problems")
    assert report.hint == f"pipeline verify {run.path} --repair"

    assert str(report).startswith(f"{run.path}: 1 checkpoint, ")
    (run.path / "final/coder.safetensors").unlink()
    assert any("is missing" in text for text in verify_run(run.path).problems)


def test_averaged_weights_are_vouched_for_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", finished=False)
    coder = build_coder(TopKConfig(latents=8, k=2), 4, 4, tied=True)
    run.save_average(coder, SUMMARY)
    run.finish(coder, SUMMARY)
    assert verify_run(run.path).ok
    for file in ("coder.safetensors", "config.json"):
        whole = (run.path / "final/ema" / file).read_bytes()
        flip(run.path / "final/ema" / file, -9)
        assert not verify_run(run.path).ok
        (run.path / "final/ema" / file).write_bytes(whole)
    flip(run.path / "final/ema/coder.safetensors", -9)
    assert repair_run(run.path).dropped == (run.path / "final",)


def test_what_training_did_not_make_is_not_dropped(tmp_path: Path) -> None:
    """An imported coder: nothing here can write it again, so nothing is deleted."""
    run = create_run(tmp_path, "other", {"name": "other"}, {"imported": {"from": "x"}})
    run.finish(build_coder(TopKConfig(latents=8, k=2), 4, 4, tied=True), {})
    flip(run.path / "final/coder.safetensors", -9)
    done = repair_run(run.path)
    assert (done.ok, done.dropped) == (False, ())
    assert (run.path / "final/coder.safetensors").exists()
    assert "import the coder again" in str(done.next)
