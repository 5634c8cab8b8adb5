from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train import loop
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from tests.synthetic import make_cache

SOURCE, TARGET = "layer_01.resid_mid", "layer_01.mlp_out"
TOPK = TopKConfig(latents=64, k=4)
MATRYOSHKA = MatryoshkaConfig(latents=64, k=4)


def train_until_power_cut(configs: Sequence[TrainConfig], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train these runs; the step after so many (of all runs together) raises, and nothing is saved for it."""
    real, left = loop.train_step, [steps]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("power cut")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        with pytest.raises(RuntimeError, match="power cut"):
            loop.train(configs)


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
