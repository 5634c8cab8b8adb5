"""The benchmark of object storage runs at toy size in the memory of the process; its rates are noise here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import object_storage

pytest.importorskip("obstore")


def test_object_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PIPELINE_MIRROR", str(tmp_path / "unused"))
    out, scratch = tmp_path / "out.json", tmp_path / "scratch"
    scratch.mkdir()
    toy = ["--mb", "0.1", "--width", "16", "--shard-rows", "512", "--batch", "64", "--folder", str(scratch)]
    object_storage.main([*toy, "--address", "memory://bench/one", "--json", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["bytes"] > 0.1e6
    assert len(found["seconds"]) == 8
    assert min(found["seconds"].values()) > 0
    assert "trained from the bucket, cold" in capsys.readouterr().out
    assert not list(scratch.iterdir())
