"""Runs of `train` with the fused step beside runs without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.errors import PipelineError
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.shared.runs.samples import load_samples
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.loop import train
from sparse_pipeline.train.penalties import PENALTIES
from sparse_pipeline.train.samples.config import SamplesConfig
from tests.synthetic import make_cache
from tests.train.kernels.oracles import relative


def config(folder: Path, device: torch.device, **settings: object) -> TrainConfig:
    make_cache(folder / "c", n_seq=8, ctx=8, shard_rows=32, sites={"layer_01.resid_mid": 8, "layer_01.mlp_out": 12})
    return TrainConfig(
        cache=folder / "c",
        source="layer_01.resid_mid",
        target="layer_01.mlp_out",
        runs=folder / "runs",
        coder=MatryoshkaConfig(latents=8, k=2, groups=(3, 5)),
        data=DataConfig(batch_size=5, tokens=25, heldout=0.0),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=1),
        min_steps=1,
        log_every=2,
        checkpoint_every=3,
        device=device.type,
        **settings,  # type: ignore[arg-type]
    )


def test_the_same_run_with_and_without_it(device: torch.device, tmp_path: Path) -> None:
    penalties = {"decoder_orthogonality": PENALTIES["decoder_orthogonality"].config_class(weight=0.1, every=2)}  # type: ignore[call-arg]
    samples = SamplesConfig(every=2, save_latents=None, save_per_latent=None)
    base = config(tmp_path, device, penalties=penalties, samples=samples)
    train([replace(base, name=name, fused=name) for name in ("on", "off")])  # type: ignore[arg-type]
    on, off = (open_run(tmp_path / "runs" / name) for name in ("on", "off"))
    for mine, theirs in zip(on.metrics(), off.metrics(), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"tokens_per_second", "wait_share"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name
    seen = [
        {(latent.latent, s.row, s.text): s.value for latent in load_samples(run.path).latents for s in latent.samples}
        for run in (on, off)
    ]
    assert seen[0]
    assert seen[0] == pytest.approx(seen[1], rel=1e-3)
    a, b = on.load_coder().state_dict(), off.load_coder().state_dict()
    for name in a:
        assert relative(a[name], b[name]) < 1e-5 or torch.equal(a[name], b[name]), name
    checkpoints = [run.load_checkpoint(run.checkpoints()[-1]) for run in (on, off)]
    assert checkpoints[0] is not None
    assert checkpoints[1] is not None
    found, expected = ({n: (t.shape, t.dtype) for n, t in one.optimizer.items()} for one in checkpoints if one)
    assert found.pop("fused.room") == ((3,), torch.int64)  # the size of its buffers, which autograd has not
    assert found == expected


def test_random_prefixes_over_batchtopk_are_the_same_with_and_without_it(device: torch.device, tmp_path: Path) -> None:
    coder = MatryoshkaConfig(latents=8, k=2, prefixes="random", n_prefixes=3, selection="batchtopk")
    base = replace(config(tmp_path, device), coder=coder)
    train([replace(base, name=name, fused=name) for name in ("on", "off")])  # type: ignore[arg-type]
    on, off = (open_run(tmp_path / "runs" / name) for name in ("on", "off"))
    for mine, theirs in zip(on.metrics(), off.metrics(), strict=True):
        assert mine["reconstruction"] == pytest.approx(theirs["reconstruction"], rel=1e-4)
    a, b = on.load_coder().state_dict(), off.load_coder().state_dict()
    assert a["threshold"] > 0
    for name in a:
        assert relative(a[name], b[name]) < 1e-5 or torch.equal(a[name], b[name]), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, from the interpreter
def test_a_loss_that_is_not_finite_ends_the_run(device: torch.device, tmp_path: Path) -> None:
    base = config(tmp_path, device, fused="on", name="bad")
    base = replace(base, optimizer=OptimizerConfig(lr=1e38, warmup_steps=0, grad_clip=None))
    with pytest.raises(PipelineError, match="was not finite") as raised:
        train([base])
    assert raised.value.hint is not None
    assert "train.fused=off" in raised.value.hint
