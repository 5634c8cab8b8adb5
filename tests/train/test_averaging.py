"""Weights averaged over the steps, against the sum written out; and the same bits after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sparse_pipeline
from sparse_pipeline import load_coder
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.shared.runs.verify import verify_run
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.loop import train as train_runs
from tests.train.conftest import TOPK, train_until_power_cut

MakeConfig = Callable[..., TrainConfig]


def test_the_average_is_the_weighted_sum_of_all_steps(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(name="averaged", ema=0.9, data={"epochs": 1}, optimizer=OptimizerConfig(lr=3e-3))
    seen: list[dict[str, Any]] = []
    step = sparse_pipeline.train.loop.train_step

    def watched(trainee: Any, rows: Any, measure: bool = False) -> Any:
        result = step(trainee, rows, measure)
        seen.append({name: p.detach().double().clone() for name, p in trainee.coder.named_parameters()})
        return result

    monkeypatch.setattr(sparse_pipeline.train.loop, "train_step", watched)
    (summary,) = train_runs([made])
    weights = torch.tensor([0.9 ** (len(seen) - n) for n in range(1, len(seen) + 1)], dtype=torch.float64)
    weights /= weights.sum()
    mean = {name: sum(w * one[name] for w, one in zip(weights, seen, strict=True)) for name in seen[0]}
    mean["w_dec"] = torch.nn.functional.normalize(mean["w_dec"], dim=1)
    coder = load_coder(made.path / "final" / "ema")
    for name, value in mean.items():
        torch.testing.assert_close(getattr(coder, name).double(), value, rtol=1e-4, atol=1e-6, msg=name)
    last = load_coder(made.path)
    assert not torch.equal(coder.w_enc, last.w_enc)
    assert summary.fvu_ema is not None
    assert summary.fvu_ema != summary.fvu
    heading, row = str(summary).splitlines()[:2]
    assert row[heading.index("averaged") :].split()[0] == f"{summary.fvu_ema:.4f}"
    assert verify_run(made.path).ok
    alone = config(name="alone", data={"epochs": 1}, optimizer=OptimizerConfig(lr=3e-3))
    train_runs([alone])
    file = "final/coder.safetensors"
    assert (alone.path / file).read_bytes() == (made.path / file).read_bytes(), "averaging changes no step"
    assert not (alone.path / "final" / "ema").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"coder": MatryoshkaConfig(latents=64, k=4, k_start=20, selection="batchtopk", subtract_decoder_bias=True)},
        {"coder": TOPK, "optimizer": OptimizerConfig(decay="linear")},
    ],
    ids=["k, bias", "linear"],
)
def test_schedules_and_averages_resume_exactly(
    settings: dict[str, Any], config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = (config(name=name, ema=0.99, target=None, **settings) for name in ("whole", "cut"))
    train_runs([whole])
    train_until_power_cut([cut], 33, monkeypatch)
    train_runs([cut], resume=True)
    for file in ("final/coder.safetensors", "final/ema/coder.safetensors"):
        assert (cut.path / file).read_bytes() == (whole.path / file).read_bytes(), file
    assert open_run(cut.path).metrics()[-1]["lr"] == open_run(whole.path).metrics()[-1]["lr"]
