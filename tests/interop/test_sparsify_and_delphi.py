"""sparsify loads what we write, with our codes, and what it writes comes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sparse_pipeline as sp
from sparse_pipeline.exchange.export import Wanted, export
from tests.exchange import planted as p
from tests.interop.peers import peer

sparsify = peer("sparsify")


@torch.no_grad()
def theirs(coder: object, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    out = coder(x)  # type: ignore[operator]
    codes = torch.zeros(len(x), coder.num_latents).scatter_(1, out.latent_indices, out.latent_acts)  # type: ignore[attr-defined]
    return codes.double().numpy(), out.sae_out.double().numpy()


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip"])
@pytest.mark.parametrize("architecture", ["topk", "matryoshka-topk", "relu"])
def test_out(architecture: str, kind: str, x: torch.Tensor, tmp_path: Path) -> None:
    coder = p.planted(architecture, tied=kind == "sae", skip=kind == "skip", normalise="per_dimension")
    run = p.save(coder, tmp_path / "run")
    result = export([run], Wanted(to="sparsify", out=tmp_path / "out"))
    loaded = sparsify.SparseCoder.load_from_disk(result.out / result.document["hookpoints"][0])
    p.assert_same(theirs(loaded, x), p.outputs(coder, x))


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_in(transcode: bool, skip: bool, x: torch.Tensor, tmp_path: Path) -> None:
    config = sparsify.SparseCoderConfig(num_latents=p.F, k=p.K, transcode=transcode, skip_connection=skip)
    coder = sparsify.SparseCoder(p.D, config)
    with torch.no_grad():
        for value in coder.parameters():
            value.copy_(torch.randn_like(value) * 0.4)
    coder.save_to_disk(tmp_path / "layers.3.mlp")
    p.assert_same(p.outputs(sp.load_coder(tmp_path / "layers.3.mlp"), x), theirs(coder, x))


def test_delphi_loads_its_folder(x: torch.Tensor, tmp_path: Path) -> None:
    loaders = peer("delphi.sparse_coders.load_sparsify")
    coder = p.planted("topk")
    run = p.save(coder, tmp_path / "run", "layer_01.mlp_out")
    out = export([run], Wanted(to="delphi", out=tmp_path / "out", model="google/gemma-2-2b")).out
    point = "layers.1.post_feedforward_layernorm"
    found = loaders.load_sparsify_sparse_coders(str(out), [point], "cpu")
    p.assert_same(theirs(found[point], x), p.outputs(coder, x))
    dense = loaders.sae_dense_latents(x, found[point]).detach().double().numpy()
    np.testing.assert_allclose(dense, p.outputs(coder, x)[0], atol=1e-4)
