"""The benchmark of the harvest's host side runs at toy size and leaves nothing; its rates are noise here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import harvest_host

TOY = ["--gb", "0.0005", "--width", "16", "--shard-rows", "256", "--writers", "2"]


@pytest.mark.parametrize("batch_tokens", ["128", "512"])
def test_harvest_host(batch_tokens: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, folder = tmp_path / "out.json", tmp_path / "scratch"
    folder.mkdir()
    harvest_host.main([*TOY, "--batch-tokens", batch_tokens, "--folder", str(folder), "--json", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["bytes"] > 0.0004e9
    assert min(found["alone"].values()) > 0
    for name in ("statistics by the writers", "statistics known"):
        assert found[name]["bytes_per_second"] > 0
        assert sum(found[name]["stages"].values()) == pytest.approx(1.0)
    assert "the loop waited for" in capsys.readouterr().out
    assert not list(folder.iterdir())
