from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from tests.synthetic import make_cache

SOURCE, TARGET = "layer_01.resid_mid", "layer_01.mlp_out"
TOPK = TopKConfig(latents=64, k=4)
MATRYOSHKA = MatryoshkaConfig(latents=64, k=4)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """2,560 rows of sparse mixtures at two sites of width 32."""
    return make_cache(tmp_path_factory.mktemp("caches") / "small", n_seq=160, ctx=16)


@pytest.fixture
def config(cache: Cache, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A run of about 75 steps; keyword arguments replace settings, `data=` only the fields given."""

    def make(data: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "cache": cache.path,
            "source": SOURCE,
            "target": TARGET,
            "runs": tmp_path / "runs",
            "coder": TOPK,
            "min_steps": 10,
            "log_every": 10,
            "checkpoint_every": 20,
            "data": DataConfig(**{"batch_size": 64, "epochs": 2, **(data or {})}),
        }
        return TrainConfig(**{**settings, **changes})

    return make
