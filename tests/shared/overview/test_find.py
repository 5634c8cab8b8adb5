"""Caches and runs by folder and by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.overview.find import frozen_settings, kind_of
from tests.shared.projects import make_run
from tests.synthetic import make_cache


def test_kind_of(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    make_run(tmp_path, "run")
    (tmp_path / "other").mkdir()
    kinds = [kind_of(tmp_path / name) for name in ("cache", "run", "other", "nothing")]
    assert kinds == ["cache", "run", None, None]


def test_frozen_settings(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "caches" / "mine", config={"harvest": {"model": "m", "ctx": 16}})
    found = frozen_settings(cache.path)
    assert found == {"harvest": {"model": "m", "ctx": 16, "cache_dir": str(tmp_path / "caches"), "name": "mine"}}
    assert frozen_settings(make_run(tmp_path, "r").path)["train"]["variant"] == "topk"
    with pytest.raises(UsageError, match="neither a cache nor a run"):
        frozen_settings(tmp_path)
