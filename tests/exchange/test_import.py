"""Published coders, laid out by hand as their tools write them, come in with the codes of their tools' formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import sparse_pipeline as sp
from sparse_pipeline.exchange.hooks import from_hf, from_tl, module_of, tl_hook, to_hf
from sparse_pipeline.exchange.imports import Overrides, import_coders
from sparse_pipeline.exchange.load import load_coders
from sparse_pipeline.models.families import FAMILIES
from sparse_pipeline.shared.config.yaml import dump_yaml
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.shared.runs.folder import open_run
from tests.exchange import planted as p
from tests.synthetic import make_cache

X = p.rows()
RAW = X.double().numpy()
D, F, K = p.D, p.F, p.K


def random(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: (rng.normal(size=shape) * 0.4).astype(np.float32) for name, shape in shapes.items()}


def saelens_folder(path: Path, kind: str, d_out: int = D, **config: Any) -> Path:
    architecture = kind
    w = random(W_enc=(D, F), W_dec=(F, d_out), b_dec=(d_out,))
    if architecture == "gated":
        w |= random(b_gate=(F,), r_mag=(F,), b_mag=(F,))
    else:
        w |= random(b_enc=(F,))
    if "jumprelu" in architecture:
        w["threshold"] = random(threshold=(F,))["threshold"]  # some of them negative: a ReLU stands before
    if "skip" in architecture:
        w |= random(W_skip=(d_out, D))
    path.mkdir(parents=True, exist_ok=True)
    save_file(w, path / "sae_weights.safetensors")
    transcoder = {"d_out": d_out, "apply_b_dec_to_input": False} if "transcoder" in architecture else {}
    topk = {"k": K, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}
    metadata = {
        "sae_lens_version": "6.54.12",
        "model_name": "google/gemma-2-2b",
        "hook_name": "blocks.8.hook_resid_mid",
    }
    if transcoder:
        metadata["hook_name_out"] = "blocks.8.hook_mlp_out"
    document = {"architecture": architecture, "d_in": D, "d_sae": F, "apply_b_dec_to_input": True, **transcoder, **topk}
    metadata |= config.pop("metadata", {})
    (path / "cfg.json").write_text(json.dumps(document | {"metadata": metadata} | config))
    return path


@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_saelens_saes(architecture: str, apply: bool, tmp_path: Path) -> None:
    """b_dec may be subtracted from the input or not: SAELens's own default is that it is."""
    folder = saelens_folder(tmp_path / "sae", architecture, apply_b_dec_to_input=apply)
    p.assert_same(p.outputs(sp.load_coder(folder), X), p.saelens(folder, RAW))


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_saelens_transcoders(architecture: str, tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", architecture, d_out=24)
    coder = sp.load_coder(folder)
    assert coder.is_transcoder
    p.assert_same(p.outputs(coder, X), p.saelens(folder, RAW))
    # a skip matrix the wrong way round: with a square one nothing but the values would tell
    square = saelens_folder(tmp_path / "square", architecture)
    p.assert_same(p.outputs(sp.load_coder(square), X), p.saelens(square, RAW))


def test_saelens_topk_selects_by_the_decoder_norm_where_its_settings_say_so(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", "topk", rescale_acts_by_decoder_norm=True)
    codes, y = p.outputs(sp.load_coder(folder), X)
    expected = p.saelens(folder, RAW)
    p.assert_same((codes, y), expected)
    plain = saelens_folder(tmp_path / "plain", "topk", rescale_acts_by_decoder_norm=False)
    assert ((p.saelens(plain, RAW)[0] > 0) != (expected[0] > 0)).any()


def test_saelens_before_version_6(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", "topk")
    old = {
        "d_in": D, "d_sae": F, "hook_point": "blocks.3.hook_resid_post", "model_name": "gpt2-small",
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False,
        "context_size": 128,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(old))
    (loaded,) = load_coders(folder)
    assert (loaded.facts.source, loaded.facts.context) == ("layer_03.resid_post", 128)
    newer = {"architecture": "topk", "k": K, "apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False}
    (folder / "cfg.json").write_text(json.dumps(old | newer))
    p.assert_same(p.outputs(loaded.coder, X), p.saelens(folder, RAW))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "'temporal' is not read"),
        ({"normalize_activations": "layer_norm"}, "which the weights alone do not contain"),
        ({"architecture": "topk", "k": None}, "integer k, found None"),
    ],
)
def test_what_cannot_be_read_is_an_error(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", "standard", **changes)
    with pytest.raises(DataError, match=message):
        sp.load_coder(folder)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("blocks.1.attn.hook_q", "'blocks.1.attn.hook_q' is not known"),
        ("model.layers.3", "not of the form blocks"),
        (None, "names no hook"),
    ],
)
def test_a_hook_that_is_not_known_can_be_said(hook: str | None, message: str, tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", "standard", metadata={"hook_name": hook})
    p.assert_same(p.outputs(sp.load_coder(folder), X), p.saelens(folder, RAW))  # the weights need no hook
    with pytest.raises(DataError, match=message) as error:
        import_coders(folder, tmp_path / "runs")
    assert "--source" in str(error.value.hint)
    said = Overrides(source="layer_03.resid_post", model="mine", input="rms")
    (made,) = import_coders(folder, tmp_path / "runs", overrides=said)
    assert (made.facts.source, made.facts.target) == ("layer_03.resid_post", "layer_03.resid_post")
    p.assert_same(p.outputs(open_run(made.path).load_coder(), X), p.saelens(folder, p.rms(RAW)))


def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", "jumprelu")
    save_file(random(W_enc=(D, F), W_dec=(F, D), b_dec=(D,), b_enc=(F,)), folder / "sae_weights.safetensors")
    with pytest.raises(DataError, match="but not threshold"):
        sp.load_coder(folder)
    save_file(
        random(W_enc=(D, F), W_dec=(F, D), b_dec=(D,), b_enc=(F,), threshold=(F - 1,)),
        folder / "sae_weights.safetensors",
    )
    with pytest.raises(DataError, match=rf"threshold: found \[{F - 1}\], expected \[{F}\]"):
        sp.load_coder(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="cannot be read"):
        sp.load_coder(folder)
    with pytest.raises(DataError, match="in no format that is read here"):
        sp.load_coder(tmp_path)
    with pytest.raises(DataError, match="was not found"):
        sp.load_coder(tmp_path / "nothing")


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_sparsify(transcode: bool, skip: bool, tmp_path: Path) -> None:
    """An SAE's input loses b_dec, a transcoder's does not; the skip connection reads x either way, as x W_skipᵀ."""
    folder = tmp_path / "layers.5.mlp"
    folder.mkdir()
    w = random(**{"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)})
    save_file(w | (random(W_skip=(D, D)) if skip else {}), folder / "sae.safetensors")
    config = {
        "activation": "topk",
        "k": K,
        "d_in": D,
        "num_latents": F,
        "skip_connection": skip,
        "transcode": transcode,
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    (loaded,) = load_coders(tmp_path)
    p.assert_same(p.outputs(loaded.coder, X), p.sparsify(folder, RAW))
    assert loaded.facts.target == "model.layers.5.mlp:out"
    assert loaded.facts.source == ("model.layers.5.mlp:in" if transcode else "model.layers.5.mlp:out")
    (folder / "cfg.json").write_text(json.dumps(config | {"activation": "groupmax"}))
    with pytest.raises(DataError, match="'groupmax' is not read"):
        sp.load_coder(folder)


def dictionary(kind: str, path: Path, **trainer: Any) -> Path:
    linear = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F)}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "AutoEncoderTopK": linear | {"b_dec": (D,)},
        "BatchTopKSAE": linear | {"b_dec": (D,)},
        "AutoEncoderNew": linear | {"decoder.bias": (D,)},
        "AutoEncoder": linear | {"bias": (D,)},
        "JumpReluAutoEncoder": {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "threshold": (F,)},
        "MatryoshkaBatchTopKSAE": {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)},
        "GatedAutoEncoder": {
            "encoder.weight": (F, D), "decoder.weight": (D, F), "r_mag": (F,), "gate_bias": (F,), "mag_bias": (F,),
            "decoder_bias": (D,),
        },
    }  # fmt: skip
    state = {name: torch.from_numpy(value) for name, value in random(**shapes[kind]).items()}
    if "TopK" in kind:
        state |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(trainer.pop("threshold", 0.7))}
    if "Matryoshka" in kind:
        state["group_sizes"] = torch.tensor([16, F - 16])
    path.mkdir(parents=True)
    torch.save(state, path / "ae.pt")
    document = {
        "trainer": {
            "dict_class": kind,
            "dict_size": F,
            "lm_name": "EleutherAI/pythia-70m-deduped",
            "layer": 4,
            **trainer,
        }
    }
    (path / "config.json").write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "AutoEncoderNew",
        "JumpReluAutoEncoder",
        "MatryoshkaBatchTopKSAE",
        "GatedAutoEncoder",
    ],
)
def test_dictionary_learning(kind: str, tmp_path: Path) -> None:
    folder = dictionary(kind, tmp_path / "trainer_0")
    (loaded,) = load_coders(folder)
    p.assert_same(p.outputs(loaded.coder, X), p.dictionary_learning(folder, RAW))
    assert loaded.facts.source == "layer_04.resid_post"
    if kind == "MatryoshkaBatchTopKSAE":
        assert loaded.coder.prefixes == (16, F)


def test_dictionary_learning_scales_the_rows_of_its_first_autoencoder(tmp_path: Path) -> None:
    """Its loader makes decoder rows of length 1, so its codes are not those of the file."""
    folder = dictionary("AutoEncoder", tmp_path / "trainer_0")
    w = {name: value.double().numpy() for name, value in torch.load(folder / "ae.pt", weights_only=True).items()}
    norms = np.linalg.norm(w["decoder.weight"], axis=0)
    codes = np.maximum((RAW - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"], 0)
    expected = codes * norms, codes @ w["decoder.weight"].T + w["bias"]
    p.assert_same(p.outputs(sp.load_coder(folder), X), expected)


def test_a_batchtopk_whose_threshold_was_never_set_keeps_every_positive_code(tmp_path: Path) -> None:
    folder = dictionary("BatchTopKSAE", tmp_path / "trainer_0", threshold=-1.0)
    p.assert_same(p.outputs(sp.load_coder(folder), X), p.dictionary_learning(folder, RAW))


class Malicious:
    def __reduce__(self) -> Any:
        return (print, ("a pickle ran",))


def test_a_pickle_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = dictionary("BatchTopKSAE", tmp_path / "trainer_0")
    torch.save({"encoder.weight": Malicious()}, folder / "ae.pt")
    with pytest.raises(DataError, match="cannot be read as plain tensors"):
        sp.load_coder(folder)
    assert "a pickle ran" not in capsys.readouterr().out


def transcoder_set(path: Path, layers: int = 2, *, rms: bool = True, skip: bool = True, **config: Any) -> Path:
    path.mkdir()
    for layer in range(layers):
        w = random(W_enc=(F, D), W_dec=(F, D), b_enc=(F,), b_dec=(D,)) | (random(W_skip=(D, D)) if skip else {})
        w["b_enc"] += layer
        if "activation" not in config:
            w["activation_function.threshold"] = np.abs(w["b_enc"]) + np.float32(0.1)
        save_file(w, path / f"layer_{layer}.safetensors")
    document = {
        "model_name": "google/gemma-2-2b",
        "model_kind": "transcoder_set",
        "feature_input_hook": "ln2.hook_normalized" if rms else "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
        "scan": "planted",
        **config,
    }
    (path / "config.yaml").write_text(dump_yaml(document))
    return path


@pytest.mark.parametrize("config", [{}, {"activation": "relu"}, {"activation": "topk", "k": K}])
def test_circuit_tracer(config: dict[str, Any], tmp_path: Path) -> None:
    """W_enc is [F, d] here, a square skip matrix is applied as x W_skipᵀ, and the input has no gain."""
    folder = transcoder_set(tmp_path / "set", **config)
    first, second = load_coders(folder)
    assert (first.facts.name, second.facts.source) == ("set-layer_00", "layer_01.resid_mid")
    for layer, loaded in enumerate((first, second)):
        assert loaded.coder.config.input_transform == "rms"
        expected = p.circuit_tracer(folder / f"layer_{layer}.safetensors", config, p.rms(RAW))
        assert (expected[0] >= 0).all()
        p.assert_same(p.outputs(loaded.coder, X), expected)


def test_a_cross_layer_transcoder_is_refused(tmp_path: Path) -> None:
    folder = transcoder_set(tmp_path / "set", model_kind="cross_layer_transcoder")
    with pytest.raises(DataError, match="cross_layer_transcoder"):
        sp.load_coder(folder)


def gemma_scope_1(folder: Path) -> Path:
    folder.mkdir(parents=True)
    w = random(W_enc=(D, F), b_enc=(F,), W_dec=(F, D), b_dec=(D,), threshold=(F,))
    np.savez(folder / "params.npz", **w | {"threshold": np.abs(w["threshold"])})
    return folder


def test_gemma_scope_1_reads_its_sites_from_the_path(tmp_path: Path) -> None:
    """Its transcoders read the residual stream over its root mean square, without the norm's gain."""
    below = "layer_8/width_16k/average_l0_71"
    expected = {
        "gemma-scope-2b-pt-res": ("layer_08.resid_post", "layer_08.resid_post", "raw"),
        "gemma-scope-2b-pt-mlp": ("layer_08.mlp_out", "layer_08.mlp_out", "raw"),
        "gemma-scope-2b-pt-att": (*["layer_08.attn_z"] * 2, "raw"),
        "gemma-scope-2b-pt-transcoders": ("layer_08.resid_mid", "layer_08.mlp_out", "rms"),
    }
    for repository, (source, target, transform) in expected.items():
        folder = gemma_scope_1(tmp_path / repository / below)
        (loaded,) = load_coders(folder)
        assert (loaded.facts.source, loaded.facts.target, loaded.facts.model) == (source, target, "google/gemma-2-2b")
        assert loaded.coder.config.input_transform == transform
        given = p.rms(RAW) if transform == "rms" else RAW
        p.assert_same(p.outputs(loaded.coder, X), p.gemma_scope(folder, given))
        p.assert_same(p.outputs(sp.load_coder(folder / "params.npz"), X), p.gemma_scope(folder, given))
    bare = gemma_scope_1(tmp_path / "downloaded")
    with pytest.raises(DataError, match="names no layer"):
        import_coders(bare, tmp_path / "runs")
    said = Overrides(source="layer_08.resid_mid", target="layer_08.mlp_out", input="rms")
    (made,) = import_coders(bare, tmp_path / "runs", overrides=said)
    coder = open_run(made.path).load_coder()
    assert coder.is_transcoder
    p.assert_same(p.outputs(coder, X), p.gemma_scope(bare, p.rms(RAW)))


@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2_follows_its_own_hook_points(affine: bool, tmp_path: Path) -> None:
    """Its affine matrix is [d_in, d_out], and its inputs carry the gain, whatever other tools call them."""
    folder = tmp_path / "transcoder_all" / "layer_5_width_16k_l0_small_affine"
    folder.mkdir(parents=True)
    w = random(w_enc=(D, F), b_enc=(F,), w_dec=(F, D), b_dec=(D,), threshold=(F,))
    save_file(w | (random(affine_skip_connection=(D, D)) if affine else {}), folder / "params.safetensors")
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-1b-pt",
        "hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
        "affine_connection": affine,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (loaded,) = load_coders(folder)
    assert (loaded.facts.source, loaded.facts.target) == ("layer_05.mlp_in", "layer_05.mlp_out")
    assert loaded.coder.config.input_transform == "raw"
    expected = p.gemma_scope(folder, RAW)
    p.assert_same(p.outputs(loaded.coder, X), expected)
    if affine:  # the other way round it would be another coder
        w_skip = random(affine_skip_connection=(D, D))["affine_skip_connection"]
        assert np.abs(RAW @ w_skip - RAW @ w_skip.T).max() > 1
    attention = config | {"hf_hook_point_in": "model.layers.5.self_attn.o_proj.input", "hf_hook_point_out": None}
    (folder / "config.json").write_text(json.dumps(attention))
    (loaded,) = load_coders(folder)
    assert loaded.facts.source == loaded.facts.target == "layer_05.attn_z"


# --- names of places --------------------------------------------------------------------------------------------------


def test_hooks_of_transformer_lens() -> None:
    gemma = "google/gemma-2-2b"
    reads = {
        "blocks.8.hook_resid_pre": ("layer_08.resid_pre", False),
        "blocks.8.hook_mlp_out": ("layer_08.mlp_out", False),
        "blocks.12.ln2.hook_normalized": ("layer_12.resid_mid", True),  # no gain
        "blocks.8.mlp.hook_in": ("layer_08.mlp_in", False),  # with the gain
        "blocks.8.hook_mlp_in": ("layer_08.resid_mid", False),  # before the norm
        "blocks.8.attn.hook_z": ("layer_08.attn_z", False),  # before W_O
        "blocks.8.mlp.hook_out": ("model.layers.8.mlp:out", False),  # a norm follows: this is not mlp_out
    }
    for hook, (site, rms) in reads.items():
        found = from_tl(hook, gemma, "cfg.json")
        assert (found.site, found.rms) == (site, rms)
        if hook != "blocks.8.hook_mlp_in":
            assert tl_hook(site, rms) == hook
    assert from_tl("blocks.8.mlp.hook_out", "meta-llama/Llama-3.2-1B", "").site == "layer_08.mlp_out"
    with pytest.raises(DataError, match="also subtracts the mean"):
        from_tl("blocks.8.ln2.hook_normalized", "gpt2-small", "cfg.json")


def test_hook_points_of_transformers() -> None:
    gemma3 = "google/gemma-3-1b-pt"
    reads = {
        "model.layers.17.output": "layer_17.resid_post",
        "model.layers.5.pre_feedforward_layernorm.output": "layer_05.mlp_in",  # with the gain
        "model.layers.5.post_feedforward_layernorm.output": "layer_05.mlp_out",
        "model.layers.5.self_attn.o_proj.input": "layer_05.attn_z",  # before W_O
    }
    for hook, site in reads.items():
        assert from_hf(hook, gemma3, "config.json").site == site
        assert to_hf(site, "gemma3_text") == hook
    for family in FAMILIES:
        for kind in FAMILIES[family].kinds:
            path, io = module_of(f"layer_03.{kind}", family) or ("", "")
            if io == "nogain":
                continue  # inside a module, no hook of `transformers` reaches it
            back = from_hf(f"{path}.{io}put", {"gemma2": "gemma-2", "gpt2": "gpt2"}.get(family), "")
            assert back.site in (f"layer_03.{kind}", f"{path}:{io}", f"model.{path}:{io}")


def test_the_module_path_counts_where_a_hook_name_contradicts_it(tmp_path: Path) -> None:
    """SAELens names the input of Gemma Scope 2's transcoders hook_mlp_in; what they read is the norm with its gain."""
    metadata = {
        "hook_name": "blocks.5.hook_mlp_in",
        "hf_hook_name": "model.layers.5.pre_feedforward_layernorm.output",
        "hf_hook_name_out": "model.layers.5.post_feedforward_layernorm.output",
        "model_name": "google/gemma-3-1b-pt",
    }
    (loaded,) = load_coders(saelens_folder(tmp_path / "sae", "jumprelu_transcoder", metadata=metadata))
    assert (loaded.facts.source, loaded.facts.target) == ("layer_05.mlp_in", "layer_05.mlp_out")
    assert loaded.coder.config.input_transform == "raw"


# --- runs -----------------------------------------------------------------------------------------------------------


def test_an_imported_run_has_what_analysis_reads(tmp_path: Path) -> None:
    sites = {"layer_08.resid_mid": D, "layer_08.mlp_out": D}
    cache = make_cache(tmp_path / "cache", sites=sites)
    folder = saelens_folder(tmp_path / "sae", "jumprelu_skip_transcoder")
    (made,) = import_coders(folder, tmp_path / "runs", name="published", cache=cache.path)
    run = open_run(made.path)
    assert (run.final["source"], run.final["target"]) == tuple(sites)
    assert run.final["cache"]["identity"] == cache.identity
    assert run.final["imported"]["format"] == "saelens"
    assert "training" not in run.final
    assert run.checkpoints() == run.metrics() == []
    p.assert_same(p.outputs(run.load_coder(), X), p.saelens(folder, RAW))
    with pytest.raises(UsageError, match="already exists"):
        import_coders(folder, tmp_path / "runs", name="published")


def test_a_mismatch_with_the_cache_is_an_error_with_both_values(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", "standard")
    runs = tmp_path / "runs"
    other = make_cache(tmp_path / "other", sites={"layer_02.resid_post": D})
    with pytest.raises(DataError, match=r"source of .* is layer_08.resid_mid, but .* holds layer_02.resid_post"):
        import_coders(folder, runs, cache=other.path)
    narrow = make_cache(tmp_path / "narrow", sites={"layer_08.resid_mid": 16})
    with pytest.raises(DataError, match=r"width 32, but in .* it has 16"):
        import_coders(folder, runs, cache=narrow.path)
    assert not runs.exists()
    (made,) = import_coders(folder, runs, cache=other.path, overrides=Overrides(source="layer_02.resid_post"))
    assert made.facts.target == "layer_02.resid_post"


def test_a_module_path_is_found_by_the_module_that_the_cache_read(tmp_path: Path) -> None:
    folder = tmp_path / "layers.1"
    folder.mkdir()
    w = random(**{"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)})
    save_file(w, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "k": K, "d_in": D, "num_latents": F}))
    cache = make_cache(tmp_path / "cache", sites={"layer_01.resid_post": D})  # its module is model.layers.1:out
    (made,) = import_coders(folder, tmp_path / "runs", cache=cache.path)
    assert made.facts.source == "layer_01.resid_post"


def test_a_set_becomes_a_run_for_each_layer_or_for_one(tmp_path: Path) -> None:
    folder = transcoder_set(tmp_path / "set", 3)
    made = import_coders(folder, tmp_path / "runs", name="plt")
    assert [one.path.name for one in made] == ["plt-layer_00", "plt-layer_01", "plt-layer_02"]
    (one,) = import_coders(folder, tmp_path / "runs", name="one", layer=2)
    assert one.facts.target == "layer_02.mlp_out"
