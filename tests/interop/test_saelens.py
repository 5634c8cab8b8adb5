"""SAELens loads what we write, with our codes; what it trains comes in, is analysed, and goes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparse_pipeline as sp
from sparse_pipeline.exchange.export import Wanted, export
from sparse_pipeline.exchange.imports import import_coders
from tests.exchange import planted as p
from tests.interop.peers import peer
from tests.synthetic import make_cache

sae_lens = peer("sae_lens")
trainers = peer("sae_lens.training.sae_trainer")
configs = peer("sae_lens.config")

ALL = ("topk", "matryoshka-topk", "batchtopk", "matryoshka-batchtopk", "relu", "jumprelu", "gated")


@torch.no_grad()
def theirs(folder: Path, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    sae = sae_lens.SAE.load_from_disk(folder)
    codes = sae.encode(x)
    codes = codes.to_dense() if codes.is_sparse else codes
    return codes.double().numpy(), sae(x).double().numpy()


@pytest.mark.parametrize("normalise", ["scalar", "whiten"])
@pytest.mark.parametrize("architecture", ALL)
def test_saes(architecture: str, normalise: str, x: torch.Tensor, tmp_path: Path) -> None:
    coder = p.planted(architecture, normalise=normalise)
    run = p.save(coder, tmp_path / "run")
    out = export([run], Wanted(to="saelens", out=tmp_path / "out")).out
    p.assert_same(theirs(out, x), p.outputs(coder, x))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", ["batchtopk", "relu", "jumprelu", "gated"])
def test_transcoders(architecture: str, skip: bool, x: torch.Tensor, tmp_path: Path) -> None:
    coder = p.planted(architecture, tied=False, skip=skip, d_out=24)
    run = p.save(coder, tmp_path / "run")
    out = export([run], Wanted(to="saelens", out=tmp_path / "out")).out
    p.assert_same(theirs(out, x), p.outputs(coder, x))


def trained(kind: str, cache: Any, folder: Path) -> Path:
    """An SAE that SAELens trains on the rows of a cache, for a few steps."""
    settings = {
        "standard": (sae_lens.StandardTrainingSAEConfig, sae_lens.StandardTrainingSAE, {}),
        "topk": (sae_lens.TopKTrainingSAEConfig, sae_lens.TopKTrainingSAE, {"k": p.K}),
        "batchtopk": (sae_lens.BatchTopKTrainingSAEConfig, sae_lens.BatchTopKTrainingSAE, {"k": p.K}),
        "jumprelu": (sae_lens.JumpReLUTrainingSAEConfig, sae_lens.JumpReLUTrainingSAE, {}),
        "gated": (sae_lens.GatedTrainingSAEConfig, sae_lens.GatedTrainingSAE, {}),
    }
    config_class, sae_class, extra = settings[kind]
    config = config_class(d_in=p.D, d_sae=p.F, **extra)
    config.metadata.model_name, config.metadata.hook_name = "synthetic", "blocks.1.hook_resid_mid"
    rows = cache.rows(p.SOURCE, np.arange(cache.n_rows)).float()

    def batches() -> Any:
        step = 0
        while True:
            yield rows[(step * 64 + torch.arange(64)) % len(rows)]
            step += 1

    sae = sae_class(config)
    run = configs.SAETrainerConfig(total_training_samples=64 * 30, train_batch_size_samples=64, lr=1e-2, lr_end=1e-3)
    trainers.SAETrainer(run, sae, batches()).fit()
    sae.save_inference_model(folder)
    return folder


@pytest.mark.parametrize("kind", ["standard", "topk", "batchtopk", "jumprelu", "gated"])
def test_what_saelens_trains_comes_in_is_analysed_and_goes_back(kind: str, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", n_seq=64, sites={p.SOURCE: p.D})
    published = trained(kind, cache, tmp_path / "published")
    rows = cache.rows(p.SOURCE, np.arange(200)).float()
    (run,) = import_coders(published, tmp_path / "runs", name="theirs", cache=cache.path)
    p.assert_same(p.outputs(sp.load_coder(run.path), rows), theirs(published, rows))

    reports = {"global": {}, "correlation": None, "position": None, "top_activations": None}
    result = sp.run_analyze([run.path], {"out": str(tmp_path / "reports"), "reports": reports})
    codes, y = theirs(published, cache.rows(p.SOURCE, np.arange(cache.n_rows)).float())
    rest = ~(np.arange(cache.n_rows) % cache.ctx == 0)
    actual = cache.rows(p.SOURCE, np.arange(cache.n_rows)).double().numpy()
    fvu = np.square(actual - y)[rest].sum() / np.square(actual[rest] - actual[rest].mean(0)).sum()
    assert result.runs[0]["fvu"] == pytest.approx(fvu, rel=1e-3)
    assert result.runs[0]["l0"] == pytest.approx((codes[rest] > 0).sum(1).mean(), rel=1e-3)

    back = export([run.path], Wanted(to="saelens", out=tmp_path / "back")).out
    p.assert_same(theirs(back, rows), theirs(published, rows))
    config = json.loads((back / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_mid"
    assert config["architecture"] == json.loads((published / "cfg.json").read_text())["architecture"]
