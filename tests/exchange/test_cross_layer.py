"""Cross-layer transcoders in circuit-tracer's format, checked against its formula in numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sparse_pipeline.exchange.export import Wanted, export
from sparse_pipeline.shared.coders import build_coder, save_coder
from sparse_pipeline.shared.coders.configs.cross_layer import CrossLayerConfig
from sparse_pipeline.shared.coders.cross_layer import CrossLayer
from sparse_pipeline.shared.coders.normalisation import SiteMoments
from sparse_pipeline.shared.config.yaml import load_yaml
from sparse_pipeline.shared.errors import UsageError
from tests.synthetic import make_cache

L, D, PER = 3, 16, 12
SOURCES, TARGETS = ([f"layer_{n:02d}.{kind}" for n in range(L)] for kind in ("resid_mid", "mlp_out"))


def planted(**changes: Any) -> CrossLayer:
    generator = torch.Generator().manual_seed(0)
    config = CrossLayerConfig(**{"latents": L * PER, "k": 3, "normalise": "whiten", **changes})
    coder = build_coder(config, (D,) * L, (D,) * L, tied=False, generator=generator)
    assert isinstance(coder, CrossLayer)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        if coder.config.selection == "batchtopk":
            coder.threshold.copy_(torch.tensor([0.6, 0.9, 1.2]))
    mixing = torch.randn(L * D, L * D, generator=generator).double()
    moments = SiteMoments(torch.linspace(-1, 2, L * D).double(), torch.ones(L * D).double(), mixing @ mixing.T)
    coder.set_normalisation(moments, moments)
    return coder.eval()


def save(
    coder: CrossLayer, folder: Path, sources: list[str] = SOURCES, targets: list[str] = TARGETS, **extra: Any
) -> Path:
    save_coder(coder, folder, {"source": "+".join(sources), "target": "+".join(targets), **extra})
    return folder


def test_written_weights_are_the_coder(tmp_path: Path) -> None:
    coder = planted()
    cache = make_cache(tmp_path / "cache", 40, 16, sites=dict.fromkeys(SOURCES + TARGETS, D))
    known = {"path": str(cache.path), "identity": cache.identity}
    run = save(coder, tmp_path / "run", cache=known)
    result = export([run], Wanted(to="circuit-tracer", out=tmp_path / "out", model="google/gemma-2-2b"))
    document = json.loads((result.out / "export.json").read_text())
    assert document["exact"]
    assert document["layers"] == L
    measured = document["coders"][0]["measured"]
    assert measured["max_code_difference"] < 1e-4 * max(1, measured["max_code"])
    assert measured["rows_with_other_latents"] == 0
    config = load_yaml(result.out / "config.yaml")
    assert config["model_kind"] == "cross_layer_transcoder"
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("hook_resid_mid", "hook_mlp_out")

    x = cache.rows("+".join(SOURCES), range(64)).double().numpy().reshape(64, L, D)
    enc = [load_file(result.out / f"W_enc_{i}.safetensors") for i in range(L)]
    dec = [load_file(result.out / f"W_dec_{i}.safetensors")[f"W_dec_{i}"] for i in range(L)]
    assert [one.shape for one in dec] == [(PER, L - i, D) for i in range(L)]
    y = np.stack([enc[i][f"b_dec_{i}"].astype(np.float64) for i in range(L)])[None].repeat(64, 0)
    codes = []
    for i in range(L):
        pre = x[:, i] @ enc[i][f"W_enc_{i}"].T.astype(np.float64) + enc[i][f"b_enc_{i}"]
        codes.append(pre * (pre > enc[i][f"threshold_{i}"]))
        y[:, i:] += np.einsum("bf,fld->bld", codes[-1], dec[i].astype(np.float64))
    given = torch.from_numpy(x.reshape(64, -1)).float()
    ours = coder.encode(given)
    np.testing.assert_allclose(np.concatenate(codes, 1), ours.dense().detach().numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(y.reshape(64, -1), coder.decode(ours).detach().numpy(), rtol=1e-3, atol=1e-2)


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    out = Wanted(to="circuit-tracer", out=tmp_path / "out", model="google/gemma-2-2b")
    for number, (coder, sites, message) in enumerate(
        (
            (planted(skip=True), {}, "no skip matrices"),
            (planted(selection="topk"), {}, "thresholds are needed"),
            (planted(), {"sources": SOURCES[::-1], "targets": TARGETS[::-1]}, "every layer of the model from 0 on"),
        )
    ):
        with pytest.raises(UsageError, match=message):
            export([save(coder, tmp_path / f"run{number}", **sites)], out)
    with pytest.raises(UsageError, match="--to saelens needs a coder of one site; this cross-layer transcoder"):
        export([save(planted(), tmp_path / "other")], Wanted(to="saelens", out=tmp_path / "sae"))
