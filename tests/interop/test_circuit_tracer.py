"""circuit-tracer loads what we write, with our codes, and builds an attribution graph with it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparse_pipeline as sp
from sparse_pipeline.exchange.export import Wanted, export
from sparse_pipeline.exchange.formats import Options
from sparse_pipeline.models.folder import DEMO_MODEL
from sparse_pipeline.shared.coders import Coder
from sparse_pipeline.shared.config.yaml import load_yaml
from tests.exchange import planted as p
from tests.exchange import test_cross_layer as cross_layer
from tests.interop.peers import peer

single = peer("circuit_tracer.transcoder.single_layer_transcoder")
clt = peer("circuit_tracer.transcoder.cross_layer_transcoder")
activations = peer("circuit_tracer.transcoder.activation_functions")


def load(folder: Path, layers: int) -> Any:
    """The set, as circuit-tracer loads it; TopK where its loader knows it, else put in as its own module."""
    config = load_yaml(folder / "config.yaml")
    known = inspect.signature(single.load_transcoder_set).parameters
    extra = {name: config[name] for name in ("activation", "k") if name in known and name in config}
    found = single.load_transcoder_set(
        {layer: str(folder / f"layer_{layer}.safetensors") for layer in range(layers)},
        scan=config["scan"],
        feature_input_hook=config["feature_input_hook"],
        feature_output_hook=config["feature_output_hook"],
        device=torch.device("cpu"),
        **extra,
    )
    if config.get("activation") == "topk" and "activation" not in known:
        for transcoder in found:
            transcoder.activation_function = activations.TopK(config["k"])
    return found


@torch.no_grad()
def theirs(transcoder: Any, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    codes = transcoder.encode(x)
    return codes.double().numpy(), transcoder.decode(codes, x).double().numpy()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu", "jumprelu", "gated", "matryoshka-topk"])
def test_out(architecture: str, rms: bool, skip: bool, x: torch.Tensor, tmp_path: Path) -> None:
    coder = p.planted(architecture, tied=False, skip=skip, rms=rms)
    run = p.save(coder, tmp_path / "run")
    out = export([run], Wanted(to="circuit-tracer", out=tmp_path / "out", options=Options(layers=2))).out
    given = torch.from_numpy(p.rms(x.double().numpy())).float() if rms else x
    p.assert_same(theirs(load(out, 2)[1], given), p.outputs(coder, x))


@pytest.mark.parametrize("skip", [False, True])
def test_in(skip: bool, x: torch.Tensor, tmp_path: Path) -> None:
    transcoder = single.SingleLayerTranscoder(
        p.D, p.F, activations.JumpReLU(torch.rand(p.F)), 0, skip_connection=skip, dtype=torch.float32
    )
    with torch.no_grad():
        for name, value in transcoder.named_parameters():
            if "threshold" not in name:
                value.copy_(torch.randn_like(value) * 0.4)
    whole = single.TranscoderSet({0: transcoder}, "hook_resid_mid", "hook_mlp_out")
    whole.to_safetensors(str(tmp_path))
    (tmp_path / "config.yaml").write_text(
        "model_name: google/gemma-2-2b\nmodel_kind: transcoder_set\nfeature_input_hook: hook_resid_mid\n"
        "feature_output_hook: hook_mlp_out\n"
    )
    p.assert_same(p.outputs(sp.load_coder(tmp_path), x), theirs(transcoder, x))


@torch.no_grad()
def test_cross_layer_out(tmp_path: Path) -> None:
    coder = cross_layer.planted()
    run = cross_layer.save(coder, tmp_path / "run")
    out = export([run], Wanted(to="circuit-tracer", out=tmp_path / "out", model="google/gemma-2-2b")).out
    loaded = clt.load_clt(str(out), device=torch.device("cpu"), dtype=torch.float32, lazy_decoder=False)
    x = torch.randn(50, coder.d_in, generator=torch.Generator().manual_seed(0)) * 3
    codes = coder.encode(x)
    sites = x.view(50, cross_layer.L, -1).transpose(0, 1)
    found = loaded.encode(sites)
    assert torch.allclose(found.transpose(0, 1).flatten(1), codes.dense(), rtol=1e-3, atol=1e-3)
    y = loaded.decode(found.to_sparse())
    assert torch.allclose(y.transpose(0, 1).flatten(1), coder.decode(codes), rtol=1e-3, atol=1e-2)


def small_gemma(layers: int) -> Any:
    """The settings of a random Gemma-2 with d = 32, as TransformerLens builds it."""
    from transformer_lens import HookedTransformerConfig

    return HookedTransformerConfig(
        n_layers=layers,
        d_model=p.D,
        n_ctx=32,
        d_head=8,
        n_heads=4,
        d_mlp=64,
        d_vocab=40,
        act_fn="gelu_pytorch_tanh",
        eps=1e-6,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=8,
        final_rms=True,
        gated_mlp=True,
        use_normalization_before_and_after=True,
        attn_scores_soft_cap=50.0,
        output_logits_soft_cap=30.0,
        original_architecture="Gemma2ForCausalLM",
        model_name="gemma-2-2b",
        seed=0,
        device="cpu",
    )


@pytest.mark.parametrize("rms", [False, True])
def test_an_attribution_graph_of_a_random_gemma(rms: bool, tmp_path: Path) -> None:
    """Its active features at a layer are the codes of our coder on what the model has at our sites."""
    import huggingface_hub.constants
    from transformers import AutoTokenizer

    if not hasattr(huggingface_hub.constants, "HF_HUB_ENABLE_HF_TRANSFER"):  # gone since huggingface_hub 1.0
        huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER = False
    replacement = peer("circuit_tracer.replacement_model")
    attribution = peer("circuit_tracer.attribution.attribute")
    layers = 2
    coders: list[Coder] = [p.planted("jumprelu", tied=False, rms=rms, seed=layer) for layer in range(layers)]
    runs = [
        p.save(coder, tmp_path / f"run{layer}", f"layer_0{layer}.resid_mid", f"layer_0{layer}.mlp_out")
        for layer, coder in enumerate(coders)
    ]
    out = export(runs, Wanted(to="circuit-tracer", out=tmp_path / "set", model="google/gemma-2-2b")).out
    model = replacement.ReplacementModel.from_config(small_gemma(layers), load(out, layers))
    model.tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)  # it must say that the first token is BOS
    tokens = torch.tensor([2, 5, 9, 17, 3, 8])
    graph = attribution.attribute(tokens, model, max_n_logits=4, verbose=False)
    assert graph.adjacency_matrix.isfinite().all()
    assert graph.adjacency_matrix.abs().sum() > 0

    names = [f"blocks.{layer}.hook_resid_mid" for layer in range(layers)]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    found = {
        tuple(map(int, where)): float(value)
        for where, value in zip(graph.active_features, graph.activation_values, strict=True)
    }
    expected = {}
    for layer, coder in enumerate(coders):
        codes = coder.encode(cache[names[layer]][0]).dense()
        codes[0] = 0  # it leaves position 0 alone
        expected |= {(layer, int(i), int(j)): float(codes[i, j]) for i, j in codes.nonzero()}
    assert len(expected) > 50
    assert found.keys() == expected.keys()
    assert [found[key] for key in expected] == pytest.approx(list(expected.values()), rel=1e-4, abs=1e-4)
