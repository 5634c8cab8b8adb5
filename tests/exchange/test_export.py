"""Every format, checked against its published formula in numpy; what is approximate is said and measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_pipeline.exchange.export import Wanted, export
from sparse_pipeline.exchange.formats import FORMATS, Options
from sparse_pipeline.exchange.load import load_coder
from sparse_pipeline.exchange.measure import rows_for
from sparse_pipeline.exchange.names import FORMAT_NAMES
from sparse_pipeline.shared.config.yaml import load_yaml
from sparse_pipeline.shared.errors import DataError, UsageError
from tests.exchange import planted as p
from tests.synthetic import make_cache

ALL = (
    "topk", "matryoshka-topk", "batchtopk", "matryoshka-batchtopk", "relu", "jumprelu", "matryoshka-jumprelu", "gated",
)  # fmt: skip
X = p.rows()
RAW = X.double().numpy()


def test_the_names_are_the_formats() -> None:
    assert tuple(FORMATS) == FORMAT_NAMES


def exported(tmp_path: Path, coder: Any, to: str, **options: Any) -> tuple[Path, dict[str, Any]]:
    run = p.save(coder, tmp_path / "run")
    result = export([run], Wanted(to=to, out=tmp_path / "out", options=Options(**options)))
    return result.out, json.loads((result.out / "export.json").read_text())


@pytest.mark.parametrize("normalise", ["scalar", "per_dimension", "whiten"])
@pytest.mark.parametrize("architecture", ALL)
def test_saelens_sae(architecture: str, normalise: str, tmp_path: Path) -> None:
    coder = p.planted(architecture, normalise=normalise)
    out, document = exported(tmp_path, coder, "saelens")
    p.assert_same(p.saelens(out, RAW), p.outputs(coder, X))
    assert document["exact"]
    assert (
        "not measured" in document["coders"][0]["measured_text"]
        or "names no cache" in document["coders"][0]["measured_text"]
    )
    metadata = json.loads((out / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_resid_mid"
    assert int(metadata["sae_lens_version"].partition(".")[0]) >= 6


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka-batchtopk", "relu", "jumprelu", "gated"])
@pytest.mark.parametrize("d_out", [p.D, 24])
def test_saelens_transcoder(architecture: str, skip: bool, d_out: int, tmp_path: Path) -> None:
    coder = p.planted(architecture, tied=False, skip=skip, normalise="whiten", d_out=d_out)
    out, document = exported(tmp_path, coder, "saelens")
    p.assert_same(p.saelens(out, RAW), p.outputs(coder, X))
    assert document["exact"]
    assert json.loads((out / "cfg.json").read_text())["metadata"]["hook_name_out"] == "blocks.1.hook_mlp_out"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ALL)
def test_plain_safetensors_round_trip_is_bit_exact(architecture: str, tied: bool, tmp_path: Path) -> None:
    coder = p.planted(architecture, tied=tied, skip=not tied, normalise="whiten", rms=not tied)
    out, _ = exported(tmp_path, coder, "safetensors")
    p.assert_same(p.plain(out, RAW), p.outputs(coder, X))
    again = export([out], Wanted(to="safetensors", out=tmp_path / "again")).out
    assert (again / "coder.safetensors").read_bytes() == (out / "coder.safetensors").read_bytes()
    once, twice = load_coder(out), load_coder(again)
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in once.state_dict().items())
    assert once.config == twice.config
    p.assert_same(p.outputs(once, X), p.outputs(coder, X))


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip"])
@pytest.mark.parametrize("architecture", ["topk", "matryoshka-topk", "relu"])
def test_sparsify(architecture: str, kind: str, tmp_path: Path) -> None:
    coder = p.planted(architecture, tied=kind == "sae", skip=kind == "skip", normalise="per_dimension")
    out, document = exported(tmp_path, coder, "sparsify")
    (name,) = document["hookpoints"]
    p.assert_same(p.sparsify(out / name, RAW), p.outputs(coder, X))
    assert document["exact"]
    p.assert_same(p.outputs(load_coder(out), X), p.outputs(coder, X))


@pytest.mark.parametrize("architecture", ALL)
def test_dictionary_learning(architecture: str, tmp_path: Path) -> None:
    coder = p.planted(architecture, normalise="whiten")
    out, document = exported(tmp_path, coder, "dictionary-learning")
    p.assert_same(p.dictionary_learning(out, RAW), p.outputs(coder, X))
    expected = {
        "topk": "AutoEncoderTopK",
        "matryoshka-topk": "AutoEncoderTopK",
        "batchtopk": "BatchTopKSAE",
        "matryoshka-batchtopk": "MatryoshkaBatchTopKSAE",
        "relu": "AutoEncoderNew",
        "jumprelu": "JumpReluAutoEncoder",
        "matryoshka-jumprelu": "JumpReluAutoEncoder",
        "gated": "GatedAutoEncoder",
    }
    assert document["dict_class"] == expected[architecture]
    assert any("groups" in note for note in document["notes"]) == (
        architecture in ("matryoshka-topk", "matryoshka-jumprelu")
    )
    back = load_coder(out)
    p.assert_same(p.outputs(back, X), p.outputs(coder, X))
    if architecture == "matryoshka-batchtopk":
        assert back.prefixes == coder.prefixes


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("architecture", ALL)
def test_circuit_tracer(architecture: str, skip: bool, rms: bool, tmp_path: Path) -> None:
    coder = p.planted(architecture, tied=False, skip=skip, rms=rms)
    out, document = exported(tmp_path, coder, "circuit-tracer", layers=3)
    config = load_yaml(out / "config.yaml")
    p.assert_same(
        p.circuit_tracer(out / "layer_1.safetensors", config, p.rms(RAW) if rms else RAW), p.outputs(coder, X)
    )
    assert config["feature_input_hook"] == ("ln2.hook_normalized" if rms else "hook_resid_mid")
    assert config["feature_output_hook"] == "hook_mlp_out"
    assert ("k" in config) == ("batch" not in architecture and "topk" in architecture)
    assert (document["layers"], document["empty_layers"]) == (3, [0, 2])
    empty = p.circuit_tracer(out / "layer_2.safetensors", config, RAW)
    assert not empty[0].any()
    assert not empty[1].any()
    back = load_coder(out)  # the empty layers hold no coder
    assert (back.config.input_transform == "rms") == rms
    p.assert_same(p.outputs(back, X), p.outputs(coder, X))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip", "rms"])
@pytest.mark.parametrize("architecture", ["batchtopk", "relu", "jumprelu", "gated"])
def test_gemma_scope(architecture: str, kind: str, version: int, tmp_path: Path) -> None:
    coder = p.planted(architecture, tied=kind == "sae", skip=kind == "skip", rms=kind == "rms", normalise="whiten")
    if kind == "skip" and version == 1:
        with pytest.raises(UsageError, match=r"version 1 of Gemma Scope has no"):
            exported(tmp_path, coder, "gemma-scope", version=version)
        return
    out, document = exported(tmp_path, coder, "gemma-scope", version=version)
    p.assert_same(p.gemma_scope(out, p.rms(RAW) if kind == "rms" else RAW), p.outputs(coder, X))
    assert document["exact"]
    back = load_coder(out)
    assert back.is_transcoder == coder.is_transcoder
    p.assert_same(p.outputs(back, X), p.outputs(coder, X))


def test_several_runs_are_one_set_and_missing_layers_are_named(tmp_path: Path) -> None:
    runs = [
        p.save(
            p.planted("jumprelu", tied=False, seed=layer),
            tmp_path / f"run{layer}",
            f"layer_0{layer}.resid_mid",
            f"layer_0{layer}.mlp_out",
        )
        for layer in (0, 1, 3)
    ]
    out = export(runs[:2], Wanted(to="circuit-tracer", out=tmp_path / "set")).out
    for layer in (0, 1):
        coder = p.planted("jumprelu", tied=False, seed=layer)
        p.assert_same(p.circuit_tracer(out / f"layer_{layer}.safetensors", {}, RAW), p.outputs(coder, X))
        p.assert_same(p.outputs(load_coder(out, layer=layer), X), p.outputs(coder, X))
        p.assert_same(p.outputs(load_coder(out / f"layer_{layer}.safetensors"), X), p.outputs(coder, X))
    with pytest.raises(UsageError, match="holds 2 coders"):
        load_coder(out)
    with pytest.raises(DataError, match="no layer 7"):
        load_coder(out, layer=7)
    with pytest.raises(UsageError, match="missing: 2") as error:
        export(runs, Wanted(to="circuit-tracer", out=tmp_path / "gap"))
    assert "--layers" in str(error.value.hint)
    assert not (tmp_path / "gap").exists()
    assert not list(tmp_path.glob(".*"))
    other = p.save(p.planted("relu", tied=False), tmp_path / "other", "layer_02.resid_mid", "layer_02.mlp_out")
    with pytest.raises(UsageError, match="one size, activation"):
        export([*runs, other], Wanted(to="circuit-tracer", out=tmp_path / "mixed"))


@pytest.mark.parametrize(
    ("to", "settings", "message"),
    [
        ("circuit-tracer", {"tied": True}, "this coder is an SAE"),
        ("circuit-tracer", {"tied": False, "d_out": 24}, "one width"),
        ("sparsify", {"tied": False, "d_out": 24}, "one width"),
        ("dictionary-learning", {"tied": False}, "no transcoders"),
        ("dictionary-learning", {"skip": True}, "no skip connections"),
        ("saelens", {"tied": False}, "needs rows to fit a threshold"),
    ],
)
def test_what_a_format_cannot_hold_is_an_error(to: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        exported(tmp_path, p.planted("topk", **settings), to)
    assert not (tmp_path / "out").exists()


def test_topk_through_a_threshold_is_fitted_and_measured(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", n_seq=96, sites={p.SOURCE: p.D, p.TARGET: p.D})
    coder = p.planted("topk", tied=False)
    run = p.save(coder, tmp_path / "run", training={"data": {"heldout": 0.25}})
    result = export([run], Wanted(to="saelens", out=tmp_path / "out", cache=cache.path, rows=400))
    (entry,) = result.document["coders"]
    assert not entry["exact"]
    assert "k = 6 as one threshold" in entry["approximation"]
    used = rows_for(cache, (p.SOURCE, p.TARGET), 0.25, 400)
    codes, y = p.saelens(tmp_path / "out", used.fit.double().numpy())
    assert np.count_nonzero(codes) == p.K * len(used.fit)  # as many codes on the rows it was fitted on
    codes, y = p.saelens(tmp_path / "out", used.x.double().numpy())
    ours, y_ours = p.outputs(coder, used.x)
    measured = entry["measured"]
    total = np.square(used.y.double().numpy() - cache.stats(p.TARGET).rest.mean).sum()
    assert measured["rows"] == len(used.x)
    assert measured["l0_export"] == pytest.approx(np.count_nonzero(codes) / len(codes))
    assert measured["fvu_export"] == pytest.approx(np.square(used.y.numpy() - y).sum() / total, rel=1e-4)
    assert measured["fvu_run"] == pytest.approx(np.square(used.y.numpy() - y_ours).sum() / total, rel=1e-4)
    assert measured["max_code_difference"] == pytest.approx(np.abs(ours - codes).max(), rel=1e-4)
    assert measured["rows_with_other_latents"] == pytest.approx(((ours > 0) != (codes > 0)).any(1).mean())
    assert measured["rows_with_other_latents"] > 0

    exact = export(
        [run], Wanted(to="circuit-tracer", out=tmp_path / "set", cache=cache.path, options=Options(layers=2))
    )
    assert exact.document["exact"]
    assert exact.document["coders"][0]["measured"]["rows_with_other_latents"] == 0
    other = Options(layers=2, threshold=True)
    fitted = export([run], Wanted(to="circuit-tracer", out=tmp_path / "set2", cache=cache.path, options=other))
    assert not fitted.document["exact"]
    assert fitted.document["coders"][0]["measured"]["fvu_export"] == pytest.approx(measured["fvu_export"], rel=0.05)


def test_thresholds_as_topk_are_said_to_be_approximate(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", sites={p.SOURCE: p.D})
    coder = p.planted("jumprelu")
    run = p.save(coder, tmp_path / "run")
    result = export([run], Wanted(to="sparsify", out=tmp_path / "out", cache=cache.path))
    (entry,) = result.document["coders"]
    used = rows_for(cache, (p.SOURCE, p.SOURCE), 0.0, 4096)
    l0 = np.count_nonzero(p.outputs(coder, used.fit)[0]) / len(used.fit)
    assert entry["activation"] == {"kind": "topk", "k": round(l0)}
    assert "mean number of codes" in entry["approximation"]


def test_a_folder_is_replaced_only_if_it_is_an_export_and_only_if_told(tmp_path: Path) -> None:
    run = p.save(p.planted("relu"), tmp_path / "run")
    wanted = Wanted(to="saelens", out=tmp_path / "out")
    export([run], wanted)
    document = json.loads((wanted.out / "export.json").read_text())
    for name, digest in document["files"].items():
        assert hashlib.sha256((wanted.out / name).read_bytes()).hexdigest() == digest
    assert document["coders"][0]["sha256"] == hashlib.sha256((run / "coder.safetensors").read_bytes()).hexdigest()
    with pytest.raises(UsageError, match="already exists"):
        export([run], wanted)
    export([run], Wanted(to="safetensors", out=wanted.out, overwrite=True))
    assert sorted(path.name for path in wanted.out.iterdir()) == ["coder.json", "coder.safetensors", "export.json"]
    with pytest.raises(UsageError, match="not an export"):
        export([run], Wanted(to="saelens", out=run, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_coder_that_does_not_fit_the_cache_is_an_error_with_both_values(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", sites={p.SOURCE: 16, p.TARGET: 16})
    run = p.save(p.planted("relu", tied=False), tmp_path / "run")
    with pytest.raises(DataError, match=r"width 32, but in .* it has 16"):
        export([run], Wanted(to="saelens", out=tmp_path / "out", cache=cache.path))
