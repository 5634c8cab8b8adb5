"""Runs that start from another run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sparse_pipeline.shared.coders.configs.batchtopk import BatchTopKConfig
from sparse_pipeline.shared.coders.configs.jumprelu import JumpReLUConfig
from sparse_pipeline.shared.coders.configs.topk import TopKConfig
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.loop import plan
from sparse_pipeline.train.loop import train as train_runs
from tests.train.conftest import TOPK

MakeConfig = Callable[..., TrainConfig]


def test_a_run_starts_where_another_ended_and_says_how_far_it_went(config: MakeConfig, tmp_path: Path) -> None:
    first = config(name="first", data={"epochs": 1})
    (began,) = train_runs([first])
    settings = {"init": first.path, "data": {"epochs": 1}, "optimizer": OptimizerConfig(lr=1e-3)}
    same, wider = config(name="same", **settings), config(name="wider", coder=TopKConfig(latents=80, k=4), **settings)
    for summary in train_runs([same, wider]):
        assert summary.moved is not None
        assert summary.moved["latents"] == 64
        median = summary.moved["w_dec"]["median"]
        assert 0.9 < median < 1 - 1e-5
        assert f"64 latents at a median cosine of {median:.3f} to their start" in str(summary)
        if summary.name == "same":
            assert summary.fvu_untrained == pytest.approx(began.fvu, rel=1e-6)
    assert began.moved is None
    with pytest.raises(UsageError, match="no prefixes"):
        plan([config(name="narrow", coder=TopKConfig(latents=40, k=4), init=first.path)])
    with pytest.raises(DataError, match="no finished coder"):
        plan([config(name="lost", init=tmp_path / "nothing")])


def test_a_batchtopk_becomes_a_jumprelu_of_the_same_l0(config: MakeConfig) -> None:
    batch = config(name="batch", coder=BatchTopKConfig(latents=64, k=4), data={"heldout": 0.0})
    train_runs([batch])
    jump = config(
        name="jump",
        coder=JumpReLUConfig(latents=64),
        init=batch.path,
        data={"epochs": 1, "heldout": 0.0},
        optimizer=OptimizerConfig(lr=1e-9),
    )
    (summary,) = train_runs([jump])
    assert summary.l0 == pytest.approx(4, rel=0.08)
    assert TOPK.k == 4
