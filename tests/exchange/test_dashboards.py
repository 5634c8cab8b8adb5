"""Neuronpedia's rows, SAEBench's loader, delphi's hookpoints."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import sparse_pipeline as sp
from sparse_pipeline.exchange.export import Wanted, export
from sparse_pipeline.exchange.formats import Options
from sparse_pipeline.exchange.formats.neuronpedia import CREATOR
from sparse_pipeline.exchange.imports import import_coders
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.shared.runs.explanations import write_explanations
from tests.exchange import planted as p
from tests.synthetic import make_cache

X = p.rows()

TEXT, NUMBER, WHOLE, YES = str, float, int, bool
TEXTS, NUMBERS, WHOLES = [str], [float], [int]

SCHEMA: dict[str, dict[str, Any]] = {
    "release": {
        "name": TEXT, "description": TEXT, "creatorName": TEXT, "creatorId": TEXT, "visibility": TEXT, "isNewUi": YES,
        "featured": YES, "descriptionShort": TEXT, "urls": TEXTS, "creatorEmail": TEXT, "creatorNameShort": TEXT,
        "defaultSourceSetName": TEXT, "defaultSourceId": TEXT, "defaultUmapSourceIds": TEXTS, "createdAt": TEXT,
    },
    "model": {
        "id": TEXT, "instruct": YES, "creatorId": TEXT, "displayNameShort": TEXT, "displayName": TEXT, "tlensId": TEXT,
        "dimension": WHOLE, "visibility": TEXT, "defaultSourceSetName": TEXT, "defaultSourceId": TEXT,
        "inferenceEnabled": YES, "layers": WHOLE, "neuronsPerLayer": WHOLE, "createdAt": TEXT, "owner": TEXT,
        "updatedAt": TEXT, "website": TEXT,
    },
    "sourceset": {
        "modelId": TEXT, "name": TEXT, "creatorId": TEXT, "hasDashboards": YES, "visibility": TEXT, "description": TEXT,
        "type": TEXT, "creatorName": TEXT, "urls": TEXTS, "creatorEmail": TEXT, "releaseName": TEXT,
        "defaultOfModelId": TEXT, "defaultRange": WHOLE, "defaultShowBreaks": YES, "showDfa": YES,
        "showCorrelated": YES, "showHeadAttribution": YES, "showUmap": YES, "createdAt": TEXT,
    },
    "source": {
        "id": TEXT, "modelId": TEXT, "setName": TEXT, "creatorId": TEXT, "hasDashboards": YES, "inferenceEnabled": YES,
        "inferenceHosts": TEXTS, "saelensConfig": TEXT, "saelensRelease": TEXT, "saelensSaeId": TEXT, "hfRepoId": TEXT,
        "hfFolderId": TEXT, "visibility": TEXT, "defaultOfModelId": TEXT, "hasUmap": YES, "hasUmapLogSparsity": YES,
        "hasUmapClusters": YES, "num_prompts": WHOLE, "num_tokens_in_prompt": WHOLE, "dataset": TEXT, "notes": TEXT,
        "createdAt": TEXT,
    },
    "features": {
        "modelId": TEXT, "layer": TEXT, "index": TEXT, "creatorId": TEXT, "createdAt": TEXT, "maxActApprox": NUMBER,
        "hasVector": YES, "vector": NUMBERS, "vectorLabel": TEXT, "vectorDefaultSteerStrength": NUMBER,
        "hookName": TEXT, "topkCosSimIndices": WHOLES, "topkCosSimValues": NUMBERS, "neuron_alignment_indices": WHOLES,
        "neuron_alignment_values": NUMBERS, "neuron_alignment_l1": NUMBERS, "correlated_neurons_indices": WHOLES,
        "correlated_neurons_pearson": NUMBERS, "correlated_neurons_l1": NUMBERS, "correlated_features_indices": WHOLES,
        "correlated_features_pearson": NUMBERS, "correlated_features_l1": NUMBERS, "neg_str": TEXTS,
        "neg_values": NUMBERS, "pos_str": TEXTS, "pos_values": NUMBERS, "frac_nonzero": NUMBER,
        "freq_hist_data_bar_heights": NUMBERS, "freq_hist_data_bar_values": NUMBERS,
        "logits_hist_data_bar_heights": NUMBERS, "logits_hist_data_bar_values": NUMBERS,
        "decoder_weights_dist": NUMBERS, "sourceSetName": TEXT,
    },
    "activations": {
        "id": TEXT, "tokens": TEXTS, "index": TEXT, "layer": TEXT, "modelId": TEXT, "maxValue": NUMBER,
        "maxValueTokenIndex": WHOLE, "minValue": NUMBER, "values": NUMBERS, "creatorId": TEXT, "dataSource": TEXT,
        "dataIndex": TEXT, "dfaValues": NUMBERS, "dfaTargetIndex": WHOLE, "dfaMaxValue": NUMBER, "createdAt": TEXT,
        "lossValues": NUMBERS, "logitContributions": TEXT, "binMin": NUMBER, "binMax": NUMBER, "binContains": NUMBER,
        "qualifyingTokenIndex": WHOLE, "zIndices": WHOLES, "zValues": NUMBERS,
    },
}  # fmt: skip
"""Columns of Neuronpedia's tables and their types, as its database models declare them; any of them may be null."""


def lines(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def assert_typed(row: dict[str, Any], schema: dict[str, Any]) -> None:
    assert row.keys() == schema.keys()
    for name, value in row.items():
        kind = schema[name]
        if isinstance(kind, list):
            assert value is None or all(
                isinstance(one, (kind[0], int) if kind[0] is float else kind[0]) for one in value
            )
        else:
            assert value is None or isinstance(value, (float, int) if kind is float else kind), (name, value)


def test_neuronpedia(tmp_path: Path) -> None:
    sites = {p.SOURCE: p.D, p.TARGET: p.D}
    cache = make_cache(tmp_path / "cache", n_seq=64, sites=sites)
    coder = p.planted("jumprelu", tied=False, seed=4)
    (run,) = import_coders(p.save(coder, tmp_path / "planted"), tmp_path / "runs", name="mine", cache=cache.path)
    wanted = Wanted(to="neuronpedia", out=tmp_path / "out", model="google/gemma-2-2b", cache=cache.path)
    with pytest.raises(UsageError, match="a run alone does not have") as error:
        export([run.path], wanted)
    assert "--report reports/NAME" in str(error.value.hint)

    reports = {"global": {}, "correlation": {}, "top_activations": {}, "position": None}
    made = sp.run_analyze([run.path], {"out": str(tmp_path / "reports"), "reports": reports, "controls": False})
    options = Options(report=made.report.parent)
    scores = {"value": 0.8, "low": 0.7, "high": 0.9}
    labelled = {"latent": 3, "label": "digits", "detection": scores, "fuzzing": None, "controls": {}}
    sha256 = json.loads((run.path / "final/config.json").read_bytes())["sha256"]
    for judge, of, text in (("other", "0" * 64, "of another coder"), ("mini", sha256, "digits")):
        write_explanations(
            run.path, judge, {"coder_sha256": of, "judge": {"name": judge}, "latents": [{**labelled, "label": text}]}
        )
    (source,) = export([run.path], Wanted(**{**vars(wanted), "options": options})).out.glob("gemma-2-2b/*")
    assert source.name == "1-mine-mlp-out"
    for name in ("release", "model", "sourceset", "source"):
        (row,) = lines(source / f"{name}.jsonl")
        assert_typed(row, SCHEMA[name])
    (explanation,) = lines(source / "explanations/batch-0.jsonl.gz")
    assert explanation.pop("id").startswith("c")
    assert explanation == {
        "modelId": "gemma-2-2b", "layer": source.name, "index": "3", "description": "digits",
        "typeName": "contrastive", "explanationModelName": "mini", "authorId": CREATOR,
    }  # fmt: skip
    features = lines(source / "features/batch-0.jsonl.gz")
    activations = lines(source / "activations/batch-0.jsonl.gz")
    for name, rows in (("features", features), ("activations", activations)):
        for row in rows:
            assert_typed(row, SCHEMA[name])
            assert (row["modelId"], row["layer"]) == ("gemma-2-2b", source.name)

    assert [row["index"] for row in features] == [str(latent) for latent in range(p.F)]
    np.testing.assert_allclose([row["vector"] for row in features], coder.fold().w_dec.numpy(), atol=1e-6)
    codes = coder.encode(cache.rows(p.SOURCE, np.arange(cache.n_rows))).dense().detach().numpy()
    rest = np.arange(cache.n_rows) % cache.ctx > 0
    fires = (codes > 0)[rest].mean(0)
    np.testing.assert_allclose([row["frac_nonzero"] for row in features], fires, atol=1e-6)
    assert len({row["id"] for row in activations}) == len(activations) > p.F
    tops = [row for row in activations if row["binMin"] == -1]
    for row in tops[:50]:
        at = int(row["dataIndex"]) * cache.ctx
        sequence = codes[at : at + cache.ctx, int(row["index"])]
        assert np.isclose(sequence, row["values"][row["qualifyingTokenIndex"]], rtol=1e-3).any()
        assert len(row["tokens"]) == len(row["values"])
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
    with np.errstate(invalid="ignore", divide="ignore"):  # a latent that never fires
        correlated = np.corrcoef(codes[rest].T)
    pairs = [
        (int(row["index"]), other, r)
        for row in features
        for other, r in zip(row["correlated_features_indices"], row["correlated_features_pearson"], strict=True)
    ]
    assert len(pairs) > 50
    for i, j, r in pairs:
        assert r == pytest.approx(correlated[i, j], abs=1e-3)

    with pytest.raises(DataError, match="is a report of mine, not of other"):
        (second,) = import_coders(p.save(coder, tmp_path / "p2"), tmp_path / "runs", name="other", cache=cache.path)
        export([second.path], Wanted(**{**vars(wanted), "options": options, "overwrite": True}))


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_saebench_loader(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coder = p.planted(architecture, normalise="per_dimension")
    run = p.save(coder, tmp_path / "run")
    result = export([run], Wanted(to="saebench", out=tmp_path / "out", model="google/gemma-2-2b"))
    p.assert_same(p.saelens(result.out, X.double().numpy()), p.outputs(coder, X))
    calls: list[str] = []

    class SAE:
        @classmethod
        def load_from_disk(cls, path: Path, device: str) -> SAE:
            calls.append(f"{path} {device}")
            return cls()

        def fold_W_dec_norm(self) -> None:  # noqa: N802
            calls.append("fold")

    stand_in = ModuleType("sae_lens")
    stand_in.SAE = SAE  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sae_lens", stand_in)
    names: dict[str, Any] = {"__name__": "saebench_saes", "__file__": str(result.out / "saebench_saes.py")}
    exec(compile((result.out / "saebench_saes.py").read_text(), "saebench_saes.py", "exec"), names)
    ((name, sae),) = names["selected_saes"]()
    assert (name, type(sae)) == ("run", SAE)
    assert calls == [f"{result.out} cpu", *(["fold"] if architecture == "jumprelu" else [])]
    assert any("keep their lengths" in note for note in result.document["notes"]) == (architecture == "topk")


def test_delphi_takes_what_it_can_hook(tmp_path: Path) -> None:
    coder = p.planted("topk")
    run = p.save(coder, tmp_path / "run", "layer_01.mlp_out")
    result = export([run], Wanted(to="delphi", out=tmp_path / "out", model="google/gemma-2-2b"))
    assert result.document["hookpoints"] == ["layers.1.post_feedforward_layernorm"]
    p.assert_same(
        p.sparsify(tmp_path / "out/layers.1.post_feedforward_layernorm", X.double().numpy()), p.outputs(coder, X)
    )
    assert "--hookpoints layers.1.post_feedforward_layernorm" in result.document["load"]
    other = p.save(p.planted("topk", tied=False), tmp_path / "other")
    with pytest.raises(UsageError, match="delphi's hooks do not reach this pair"):
        export([other], Wanted(to="delphi", out=tmp_path / "out2", model="google/gemma-2-2b"))
