"""Every architecture trains as SAE, transcoder and skip transcoder, resumes bit-identically and loads again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders import ARCHITECTURES, CoderConfig
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.loop import train as train_runs
from tests.train.conftest import SOURCE, TARGET, train_until_power_cut

MakeConfig = Callable[..., TrainConfig]
SHAPES: dict[str, dict[str, Any]] = {"sae": {}, "transcoder": {}, "skip": {"skip": True}}
EXTRA: dict[str, list[dict[str, Any]]] = {
    "matryoshka": [{"prefixes": "random", "selection": "batchtopk"}, {"prefixes": "random"}, {"selection": "batchtopk"}]
}


def coder_config(name: str, **settings: Any) -> CoderConfig:
    config_class = ARCHITECTURES[name].config_class
    if "k" in config_class.__dataclass_fields__:
        settings["k"] = 4
    return config_class(latents=64, **settings)  # type: ignore[call-arg]


CASES = [(name, {}) for name in ARCHITECTURES] + [(name, extra) for name, more in EXTRA.items() for extra in more]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "extra"), CASES, ids=str)
def test_it_trains_resumes_exactly_and_loads(
    name: str,
    extra: dict[str, Any],
    shape: str,
    config: MakeConfig,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = config(
        name="whole",
        data={"epochs": 1},
        coder=coder_config(name, **extra, **SHAPES[shape]),
        target=None if shape == "sae" else TARGET,
    )
    (summary,) = train_runs([made])
    run = open_run(made.path)
    losses = [line["loss"] for line in run.metrics()]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert summary.fvu is not None
    assert np.isfinite(summary.fvu)
    coder = run.load_coder()
    with torch.no_grad():
        x = cache.rows(SOURCE, np.arange(1, 9))
        assert torch.isfinite(coder.decode(coder.encode(x), x)).all()

    cut = config(name="cut", data={"epochs": 1}, coder=made.coder, target=made.target)
    train_until_power_cut([cut], 30, monkeypatch)
    train_runs([cut], resume=True)
    file = "final/coder.safetensors"
    assert (cut.path / file).read_bytes() == (made.path / file).read_bytes()
