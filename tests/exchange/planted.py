"""Coders with random weights and a normalisation that matters, and the published formula of each format in numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from sparse_pipeline.shared.coders import Coder, build_coder, save_coder
from sparse_pipeline.shared.coders.normalisation import SiteMoments
from sparse_pipeline.shared.coders.registry import ARCHITECTURES

D, F, K = 32, 64, 6
SOURCE, TARGET = "layer_01.resid_mid", "layer_01.mlp_out"

ARRAY = NDArray[np.float64]


def rows(n: int = 200, d: int = D, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * 2 + torch.linspace(-1, 3, d)


def planted(
    architecture: str,
    *,
    tied: bool = True,
    skip: bool = False,
    normalise: str = "scalar",
    rms: bool = False,
    d_out: int = D,
    seed: int = 0,
    **settings: Any,
) -> Coder:
    """A coder whose every parameter and buffer differs from its initial value."""
    name, _, selection = (architecture, "", "") if architecture in ARCHITECTURES else architecture.partition("-")
    cls = ARCHITECTURES[name]
    extra: dict[str, Any] = {"k": K} if name in ("topk", "batchtopk", "matryoshka") else {}
    if selection:
        extra["selection"] = selection
    config = cls.config_class(  # type: ignore[call-arg]
        latents=F,
        skip=skip,
        normalise=normalise,
        input_transform="rms" if rms else "raw",
        **{**extra, **settings},
    )
    generator = torch.Generator().manual_seed(seed)
    coder = build_coder(config, D, d_out, tied=tied, generator=generator)
    with torch.no_grad():
        for parameter_name, value in coder.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            scale = 0.2 if "log" in parameter_name else 0.5
            value.copy_(noise * scale - (0.5 if parameter_name == "log_threshold" else 0.0))
    coder.set_normalisation(moments(D, seed + 1), moments(D if tied else d_out, seed + (1 if tied else 2)))
    if "threshold" in dict(coder.named_buffers()):
        coder.threshold.fill_(0.9)  # type: ignore[operator,union-attr]
    return coder.eval()


def moments(d: int, seed: int) -> SiteMoments:
    """Of correlated dimensions with unequal means and variances."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator).double() / d**0.5 + torch.eye(d).double()
    covariance = mixing @ mixing.T * torch.linspace(0.5, 3, d).double()[:, None].sqrt()
    covariance = (covariance + covariance.T) / 2 + 2 * torch.eye(d).double()
    return SiteMoments(torch.linspace(-2, 2, d).double(), covariance.diagonal().clone(), covariance)


def save(coder: Coder, folder: Path, source: str = SOURCE, target: str | None = TARGET, **extra: Any) -> Path:
    """A finished coder in a folder, as a run's final/."""
    target = source if target is None or coder.tied else target
    save_coder(coder, folder, {"source": source, "target": target, **extra})
    return folder


@torch.no_grad()
def outputs(coder: Coder, x: torch.Tensor) -> tuple[ARRAY, ARRAY]:
    """Codes and reconstructions of our coder."""
    codes = coder.encode(x)
    return codes.dense().double().numpy(), coder.decode(codes, x).double().numpy()


def assert_same(found: tuple[ARRAY, ARRAY], expected: tuple[ARRAY, ARRAY], tolerance: float = 1e-5) -> None:
    """Codes and reconstructions agree to `tolerance` of the largest value, and the same latents fire."""
    for a, b in zip(found, expected, strict=True):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max())))
    assert ((found[0] != 0) == (expected[0] != 0)).all()


# --- the formats' formulas, as their documentation and code give them ------------------------------------------------


def topk(pre: ARRAY, k: int, relu: bool = True) -> ARRAY:
    out = np.zeros_like(pre)
    best = np.argsort(-pre, axis=1)[:, :k]
    values = np.take_along_axis(pre, best, 1)
    np.put_along_axis(out, best, np.maximum(values, 0) if relu else values, 1)
    return out


def tensors(path: Path) -> dict[str, ARRAY]:
    return {name: value.astype(np.float64) for name, value in load_file(path).items()}


def saelens(folder: Path, x: ARRAY) -> tuple[ARRAY, ARRAY]:
    """SAELens 6: encode and decode of the architecture in cfg.json."""
    config = json.loads((folder / "cfg.json").read_text())
    w, name = tensors(folder / "sae_weights.safetensors"), config["architecture"]
    given = x
    if "transcoder" in name:
        assert not config["apply_b_dec_to_input"]
        assert w["W_dec"].shape == (config["d_sae"], config["d_out"])
    elif config["apply_b_dec_to_input"]:
        x = x - w["b_dec"]
    if name == "gated":
        codes = (x @ w["W_enc"] + w["b_gate"] > 0) * np.maximum(x @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
    else:
        pre = x @ w["W_enc"] + w["b_enc"]
        codes = np.maximum(pre, 0)
        if name == "topk":
            rescaled = config["rescale_acts_by_decoder_norm"]
            norms = np.linalg.norm(w["W_dec"], axis=1) if rescaled else np.ones(len(w["W_dec"]))
            codes = topk(pre * norms, config["k"])
            return codes, (codes / norms) @ w["W_dec"] + w["b_dec"]
        if "jumprelu" in name:
            codes = codes * (pre > w["threshold"])
    y = codes @ w["W_dec"] + w["b_dec"]
    return codes, y + given @ w["W_skip"].T if "skip" in name else y


def sparsify(folder: Path, x: ARRAY) -> tuple[ARRAY, ARRAY]:
    """sparsify: SparseCoder.forward."""
    config = json.loads((folder / "cfg.json").read_text())
    w = tensors(folder / "sae.safetensors")
    u = x if config["transcode"] else x - w["b_dec"]
    codes = topk(np.maximum(u @ w["encoder.weight"].T + w["encoder.bias"], 0), config["k"])
    y = codes @ w["W_dec"] + w["b_dec"]
    return codes, y + x @ w["W_skip"].T if config["skip_connection"] else y


def circuit_tracer(file: Path, config: Mapping[str, Any], x: ARRAY) -> tuple[ARRAY, ARRAY]:
    """circuit-tracer: SingleLayerTranscoder.forward."""
    w = tensors(file)
    pre = x @ w["W_enc"].T + w["b_enc"]
    if config.get("activation") == "topk":
        codes = topk(pre, config["k"], relu=False)
    elif "activation_function.threshold" in w:
        codes = pre * (pre > w["activation_function.threshold"])
    else:
        codes = np.maximum(pre, 0)
    y = codes @ w["W_dec"] + w["b_dec"]
    return codes, y + x @ w["W_skip"].T if "W_skip" in w else y


def dictionary_learning(folder: Path, x: ARRAY) -> tuple[ARRAY, ARRAY]:
    """dictionary_learning: the class that config.json names, at inference."""
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    state = torch.load(folder / "ae.pt", weights_only=True)
    w, kind = {name: value.double().numpy() for name, value in state.items()}, trainer["dict_class"]
    if kind == "JumpReluAutoEncoder":
        pre = x @ w["W_enc"] + w["b_enc"]
        codes = np.maximum(pre * (pre > w["threshold"]), 0)
        return codes, codes @ w["W_dec"] + w["b_dec"]
    if kind == "AutoEncoderNew":
        codes = np.maximum(x @ w["encoder.weight"].T + w["encoder.bias"], 0)
        return codes, codes @ w["decoder.weight"].T + w["decoder.bias"]
    if kind == "GatedAutoEncoder":
        inner = (x - w["decoder_bias"]) @ w["encoder.weight"].T
        codes = (inner + w["gate_bias"] > 0) * np.maximum(np.exp(w["r_mag"]) * inner + w["mag_bias"], 0)
        return codes, codes @ w["decoder.weight"].T + w["decoder_bias"]
    if kind == "MatryoshkaBatchTopKSAE":
        assert int(w["group_sizes"].sum()) == trainer["dict_size"]
        pre = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
        codes = pre * (pre > w["threshold"])
        return codes, codes @ w["W_dec"] + w["b_dec"]
    pre = np.maximum((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], 0)
    codes = topk(pre, int(w["k"])) if kind == "AutoEncoderTopK" else pre * (pre > w["threshold"])
    return codes, codes @ w["decoder.weight"].T + w["b_dec"]


def gemma_scope(folder: Path, x: ARRAY) -> tuple[ARRAY, ARRAY]:
    """Gemma Scope: params.npz of version 1, params.safetensors of version 2."""
    if (folder / "params.npz").exists():
        w = {name.lower(): value.astype(np.float64) for name, value in np.load(folder / "params.npz").items()}
    else:
        w = tensors(folder / "params.safetensors")
    pre = x @ w["w_enc"] + w["b_enc"]
    codes = np.maximum(pre, 0) * (pre > w["threshold"])
    y = codes @ w["w_dec"] + w["b_dec"]
    return codes, y + x @ w["affine_skip_connection"] if "affine_skip_connection" in w else y


def plain(folder: Path, x: ARRAY) -> tuple[ARRAY, ARRAY]:
    """The plain form: the formulas of docs/interop.md."""
    document = json.loads((folder / "coder.json").read_text())
    w, kind = tensors(folder / "coder.safetensors"), document["activation"]["kind"]
    if document["input"] == "rms":
        x = rms(x)
    pre = x @ w["w_enc"].T + w["b_enc"]
    if kind == "gated":
        codes = (pre > 0) * np.maximum(np.exp(w["gate_log_scale"]) * (x @ w["w_enc"].T) + w["gate_b_mag"], 0)
    elif kind == "topk":
        codes = topk(pre, document["activation"]["k"])
    else:
        codes = pre * (pre > (w["threshold"] if kind == "threshold" else 0))
    y = codes @ w["w_dec"] + w["b_dec"]
    return codes, y + x @ w["w_skip"].T if "w_skip" in w else y


def rms(x: ARRAY) -> ARRAY:
    """x divided by its root mean square, without a gain, as Gemma's norm does before its gain."""
    scaled: ARRAY = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6)
    return scaled
