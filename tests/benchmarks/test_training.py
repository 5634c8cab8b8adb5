"""The benchmarks of training run at toy size and give figures of the right shape; their values are noise here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import checkpoints, data_path, monitoring, penalties, self_contrastive, train_step

TOY = ["--width", "16", "--latents", "64", "--k", "4", "--batch", "64"]


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    """A benchmark sets threads and matrix products for its whole process."""
    threads, precision, environment = torch.get_num_threads(), torch.get_float32_matmul_precision(), dict(os.environ)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    os.environ.clear()
    os.environ.update(environment)


def positive(*values: float) -> bool:
    return all(math.isfinite(value) and value > 0 for value in values)


def test_train_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    train_step.main([*TOY, "--device", "cpu", "--rounds", "3", "--warmup", "1", "--json", str(out)])
    document = json.loads(out.read_text(encoding="utf-8"))
    (run,) = document["runs"]
    results = {(row["who"], row["work"]): row for row in run["results"]}
    floor = [row for (who, _), row in results.items() if who == "floor"]
    assert len(floor) == 2
    assert {work for who, work in results if who == "ours, autograd"} == set(train_step.WORKS)
    assert all(positive(row["milliseconds"], row["over_floor"]) for row in results.values())
    assert sum(row["over_floor"] for row in floor) == pytest.approx(1)
    printed = capsys.readouterr().out
    for package in ("sae-lens", "dictionary-learning", "eai-sparsify"):
        assert f"{package} {document['peers'][package]}" in printed, "its version, or that it is not installed"
    failed = len(run["failed"])
    assert printed.count("\n| ") == len(results) + 1
    assert printed.count("\nfailed: ") == failed


def test_penalties(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    rounds = ["--rows", "2048", "--rounds", "2", "--warmup", "0", "--blocks", "1"]
    penalties.main([*TOY, *rounds, "--json", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found.keys() == penalties.contenders("").keys()
    assert found["topk"]["ratios"] == [1.0, 1.0]
    assert all(positive(row["milliseconds"], *row["ratios"]) for row in found.values())
    printed = capsys.readouterr().out
    assert all(f"\n| {name} | " in printed for name in found)


def test_monitoring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    rounds = ["--rows", "2048", "--rounds", "2", "--warmup", "0", "--every", "20"]
    monitoring.main([*TOY, *rounds, "--json", str(out)])
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert found["ratio"].keys() == found["looking"].keys() == monitoring.CONTENDERS.keys()
    assert found["ratio"]["plain"] == 1
    assert positive(*found["ratio"].values(), *found["milliseconds_per_step"].values())
    assert positive(found["milliseconds_to_write_samples"])
    assert found["looking"]["both"] > found["looking"]["plain"]
    assert "| both | " in capsys.readouterr().out


def test_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    checkpoints.main([*TOY, "--rounds", "2", "--folder", str(tmp_path), "--json", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    for way in ("in the loop", "beside"):
        assert positive(found[way]["pause"], found[way]["until on disk"])
        assert found[way]["pause"] <= found[way]["until on disk"]
    assert found["checkpoint_bytes"] > 12 * (2 * 16 + 1) * 64
    assert list(tmp_path.iterdir()) == [out], "everything it wrote is removed"
    assert "\nbeside " in capsys.readouterr().out


def test_self_contrastive(capsys: pytest.CaptureFixture[str]) -> None:
    """One form, as each of them runs in a process of its own; and what the projection finds."""
    self_contrastive.main([*TOY, "--one", "d = 64", "0.3"])
    found = json.loads(capsys.readouterr().out)
    assert positive(found["pairs_seconds"], found["whole_seconds"])
    assert min(found["pairs_peak"], found["whole_peak"]) >= 0
    rows = self_contrastive.planted_decoder(64, 16)
    exact, projected = (self_contrastive.quality(rows, width, 0.3) for width in (None, 64))
    assert exact["recall"] == exact["loss"] == 1
    assert 0.5 < projected["recall"] <= 1
    assert projected["beyond"] == exact["beyond"] > 0


def test_data_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    size = ["--gb", "0.02", "--seconds", "0.02", "--repeats", "1", "--steps", "20"]
    train = ["--train-rows", "4096", "--batch", "32"]
    data_path.main([*size, *train, "--folder", str(tmp_path), "--json", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert all(positive(rate["cold"], rate["warm"]) for rate in found["read"].values())
    assert found["write_seconds"].keys() == {"statistics", "checksum", "all"}
    assert positive(*list(found["train"].values())[:3])
    assert 0 <= found["train"]["share of time waiting"] < 1
    assert list(tmp_path.iterdir()) == [out], "everything it wrote is removed"
    assert "of the sequential rate" in capsys.readouterr().out
