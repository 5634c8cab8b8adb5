"""Damage in a run is found and named."""

from __future__ import annotations

from pathlib import Path

import torch

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
