"""A user who asks for an L0 gets it, on every architecture with a sparsity penalty."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sparse_pipeline
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders import ARCHITECTURES
from sparse_pipeline.shared.coders.sparsity import PenalisedCoder
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.loop import train as train_runs
from tests.synthetic import make_cache

MakeConfig = Callable[..., TrainConfig]
PENALISED = [name for name, cls in ARCHITECTURES.items() if issubclass(cls, PenalisedCoder)]
CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in PENALISED]
CASES += [("jumprelu", {"penalty": "tanh_quadratic"}), ("jumprelu", {"max_frequency": 0.2})]


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_cache(tmp_path_factory.mktemp("caches") / "larger", n_seq=640, ctx=16)


def test_l0_ends_at_its_target(config: MakeConfig, larger: Cache) -> None:
    """On the rows trained on, because the controller sees no others; all side by side on one read."""
    configs = [
        config(
            name=f"{number}-{target}",
            cache=larger.path,
            target=None,
            coder=ARCHITECTURES[name].config_class(latents=96, l0_target=target, **extra),  # type: ignore[call-arg]
            data={"batch_size": 256, "epochs": 5, "heldout": 0.0},
            optimizer=OptimizerConfig(lr=3e-3),
        )
        for number, (name, extra) in enumerate(CASES)
        for target in ((4.0,) if name == "relu" else (12.0,))
    ]
    for made, summary in zip(configs, train_runs(configs), strict=True):
        target = made.coder.l0_target  # type: ignore[attr-defined]
        assert summary.l0 == pytest.approx(target, rel=0.05), (made.coder, summary)
        assert summary.fvu is not None
        assert summary.fvu_untrained is not None
        assert summary.fvu < 0.7 * summary.fvu_untrained, (made.coder, summary)


def test_a_target_that_moves_is_followed(config: MakeConfig, larger: Cache) -> None:
    made = config(
        cache=larger.path,
        target=None,
        coder=ARCHITECTURES["jumprelu"].config_class(latents=96, l0_target=6.0, l0_start=24.0),  # type: ignore[call-arg]
        data={"batch_size": 256, "epochs": 5, "heldout": 0.0},
        optimizer=OptimizerConfig(lr=3e-3),
    )
    (summary,) = train_runs([made])
    assert summary.l0 == pytest.approx(6.0, rel=0.05)
    lines = open_run(made.path).metrics()
    quarter = lines[len(lines) // 4]
    assert quarter["l0"] == pytest.approx(24 - 18 * quarter["step"] / (summary.steps // 2), rel=0.25)


@pytest.mark.slow
def test_on_the_demo_ten_fifty_and_a_hundred_and_fifty(tmp_path: Path) -> None:
    """Three targets, every architecture with a penalty, on the embedded model's activations, on the rows trained on."""
    cache = sparse_pipeline.run_harvest({"cache_dir": str(tmp_path / "cache")})
    settings = [
        {
            "name": f"{name}-{target}",
            "cache": cache.path,
            "runs": str(tmp_path / "runs"),
            "target": None,
            "data": {"heldout": 0.0},
            "coder": {"architecture": name, "l0_target": target},
        }
        for name in PENALISED
        for target in (10, 50, 150)
    ]
    for one, summary in zip(settings, sparse_pipeline.run_train(settings), strict=True):
        assert summary.l0 == pytest.approx(one["coder"]["l0_target"], rel=0.05), one["name"]  # type: ignore[index]
