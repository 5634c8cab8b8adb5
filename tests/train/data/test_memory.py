from __future__ import annotations

import pytest
import torch

from sparse_pipeline.shared.config.settings import to_dict, validate
from sparse_pipeline.shared.errors import ConfigError, UsageError
from sparse_pipeline.shared.memory import free_memory
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.data.memory import MAX_AUTO_ROWS, PoolSize, choose_pool

ROW = 1000


def chosen(config: DataConfig, rows: int, free: int, on_device: bool = False) -> PoolSize:
    return choose_pool(config, rows, ROW, free, on_device=on_device)


def test_what_fits_is_within_reach_and_drawn_from_up_to_a_million_rows_at_a_time() -> None:
    """In its mapped files on a CPU, in the memory of a device: 5 GB of 6.3, of which 0.8 may be taken."""
    assert chosen(DataConfig(), 5_000_000, free=6_300_000_000) == PoolSize(MAX_AUTO_ROWS, "mapped")
    assert chosen(DataConfig(), 5_000_000, free=6_300_000_000, on_device=True) == PoolSize(MAX_AUTO_ROWS, "memory")
    assert chosen(DataConfig(), 5_000_000, free=6_200_000_000).reading == "pools"


def test_what_does_not_fit_gets_the_pools_that_do() -> None:
    for on_device in (False, True):
        size = chosen(DataConfig(prefetch=1), 50_000_000, 20_000_000_000, on_device)
        assert size == PoolSize(MAX_AUTO_ROWS, "pools")
        size = chosen(DataConfig(prefetch=1), 50_000_000, 1_000_000_000, on_device)
        assert size == PoolSize(250_000, "pools")  # half of what is free, in two pools
    assert chosen(DataConfig(prefetch=4), 50_000_000, free=1_000_000_000).window_rows == 100_000


def test_settings_go_before_what_memory_suggests() -> None:
    assert chosen(DataConfig(resident=False), 10, free=10**12).reading == "pools"
    assert chosen(DataConfig(resident=True), 10**9, free=10**6).reading == "memory"
    assert chosen(DataConfig(resident="mapped"), 10**9, free=10**6).reading == "mapped"
    assert chosen(DataConfig(pool_rows=4096), 10**9, free=10**6).window_rows == 4096
    assert chosen(DataConfig(memory_gb=0.5), 400_000, free=10**12).reading == "mapped"
    assert chosen(DataConfig(memory_gb=0.1), 400_000, free=10**12) == PoolSize(50_000, "pools")
    with pytest.raises(UsageError, match="mapped files are drawn from on a CPU"):
        chosen(DataConfig(resident="mapped"), 10, free=10**12, on_device=True)


def test_a_pool_is_a_block_at_least() -> None:
    assert chosen(DataConfig(), 10**9, free=1000).window_rows == 128


def test_free_memory_is_a_plausible_number() -> None:
    assert 10**7 < free_memory(torch.device("cpu")) < 10**15


def test_what_torch_holds_and_nothing_uses_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert free_memory(torch.device("cuda")) == 600


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"heldout": 1.0}, "heldout: a share in"),
        ({"tokens": 10}, "fewer than one batch"),
        ({"pool_rows": 4}, "less than one block"),
        ({"memory_gb": 0}, "memory_gb: must be positive"),
        ({"seed": -1}, "cannot be negative"),
        ({"resident": "maybe"}, "resident"),
        ({"batchsize": 4}, "batch_size"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate(DataConfig, settings, "train.data")


def test_settings_survive_a_round_trip() -> None:
    config = DataConfig(resident=True, tokens=5000, pool_rows=4096)
    assert validate(DataConfig, to_dict(config)) == config
    assert validate(DataConfig, {}) == DataConfig()
