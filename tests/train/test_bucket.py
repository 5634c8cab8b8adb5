"""Training and analysis on a cache in object storage: the same coder, the same figures, and copies that fit."""

from __future__ import annotations

import base64
import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline import pipeline
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.objects.room import BYTES
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.loop import plan, train
from tests.shared.cache.buckets import Machine, machine, new_address, objects

pytest.importorskip("obstore")
__all__ = ["machine"]


def uploaded(folder: Path) -> str:
    """The address of a cache that any tool has copied into a bucket, file by file."""
    address = new_address()
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.startswith(".lock"):
            objects(address).create(str(file.relative_to(folder)), [file.read_bytes()])
    return address


def coder(run: Path) -> bytes:
    return (run / "final" / "coder.safetensors").read_bytes()


def test_the_coder_of_a_local_cache(cache: Cache, config: Callable[..., TrainConfig], machine: Machine) -> None:
    address = uploaded(cache.path)
    windows: dict[str, Any] = {"resident": False, "pool_rows": 1024}
    local = config(name="local", data=windows)
    far = config(name="far", data=windows, cache=Path(address))
    planned = plan([far])
    assert planned.groups[0].to_dict()["download"] in str(planned)
    assert "to download, 0 B are here; copies may take" in str(planned)
    assert planned.groups[0].notes == [], "no warning"
    train([local])
    train([far])
    assert coder(far.path) == coder(local.path)
    record = json.loads((far.path / "final" / "config.json").read_text())["cache"]
    assert record == {"path": address, "identity": cache.identity}
    assert "in a bucket: 0 B to download" in str(plan([far]))
    assert plan([local]).groups[0].to_dict()["download"] is None


def test_copies_that_would_be_fetched_again_and_again(cache, config, machine: Machine, monkeypatch) -> None:
    address = uploaded(cache.path)
    monkeypatch.setenv(BYTES, "200KB")
    far = config(cache=Path(address), data={"resident": False, "pool_rows": 1024})
    with pytest.raises(UsageError, match="copies on this machine may take 200 kB: each window") as caught:
        plan([far])
    assert f"export {BYTES}=1GB" in str(caught.value.hint)
    plan([config(cache=Path(address), data={"resident": True})])  # every shard is read once
    monkeypatch.setenv(BYTES, "1GB")
    plan([far])


def block(page: str, name: str) -> Any:
    """A lazily read block of a report's page."""
    found = re.search(rf'id="{name}"[^>]*>([^<]+)<', page)
    assert found is not None, name
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def test_the_figures_of_a_local_cache(workshop: Path, tmp_path: Path, machine: Machine, monkeypatch) -> None:
    """`analyze` of a run on its cache, and on the same cache in a bucket."""
    shutil.copytree(workshop, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    address = uploaded(tmp_path / "w" / "cache" / "demo")
    figures = []
    for cache in ("demo", address):
        only = ["--only", "position", "--only", "top_activations"]
        command = ["analyze", "topk", *only, "--set", "analyze.controls=false"]
        assert pipeline.run([*command, "--set", f"analyze.cache={cache}", "--set", "analyze.name=r"]) == 0
        figures.append(json.loads(Path("reports/r/report.json").read_text())["runs"])
        page = Path("reports/r/index.html").read_text()
        named = figures[-1][0]["facts"]["cache"]
        assert list(block(page, "vocabulary")["domains"]) == [named], "where the page looks for a document's domain"
        assert list(block(page, "text")) == [named], "and for what stands around an example"
        shutil.rmtree("reports")
    assert [run["facts"]["cache"] for run in figures[1] if run["trained"]] == [address]
    assert [run["reports"] for run in figures[0]] == [run["reports"] for run in figures[1]]
    assert figures[0][0]["reports"]["position"]["tables"]
