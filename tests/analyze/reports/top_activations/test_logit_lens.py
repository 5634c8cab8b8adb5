"""What a latent writes, against dense float64 algebra and autograd; what its panel shows of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.top_activations.config import TopActivationsConfig
from sparse_pipeline.analyze.reports.top_activations.logit_lens import lens_of, logit_lens
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.analyze.subject.language_model import Unembedding, load_unembedding
from sparse_pipeline.analyze.subjects import subjects_of
from sparse_pipeline.models.folder import model_folder
from sparse_pipeline.shared.cache.documents import DOCUMENTS, DocumentRecord
from sparse_pipeline.shared.runs.folder import open_run
from tests.analyze.planted import ONE_TOKEN, planted
from tests.harvest.test_capture import random_model
from tests.synthetic import make_cache

Generator = torch.Generator


@pytest.mark.parametrize("tile", [7, 1000])
def test_the_most_promoted_and_suppressed_tokens(tile: int) -> None:
    generator = Generator().manual_seed(0)
    w_dec, w_u = torch.randn(12, 16, generator=generator), torch.randn(60, 16, generator=generator)
    gain = torch.rand(16, generator=generator) + 0.5
    found = logit_lens(w_dec, Unembedding(w_u.bfloat16(), gain), 4, latent_block=5, token_block=tile)
    logits = (w_dec.double() * gain.double()) @ w_u.bfloat16().double().T
    logits -= logits.mean(1, keepdim=True)
    for ids, values, largest in ((found.top, found.top_value, True), (found.bottom, found.bottom_value, False)):
        want = logits.topk(4, dim=1, largest=largest)
        np.testing.assert_array_equal(ids, want.indices.numpy())
        np.testing.assert_allclose(values, want.values.numpy(), atol=1e-4)


LAST_NORM = {
    "gpt2": "transformer.ln_f",
    "gptj": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "phi": "model.final_layernorm",
    "olmo": "model.norm",
    "olmo2": "model.norm",
    "gemma2": "model.norm",
    "llama": "model.norm",
}


@pytest.mark.parametrize("family", sorted(LAST_NORM))
def test_the_lens_is_the_derivative_of_the_models_own_output_side(family: str, tmp_path: Path) -> None:
    """Against autograd through the last norm and the head, at states where a row leaves the norm's scale as it is."""
    model = random_model(family)
    generator = Generator().manual_seed(1)
    norm = model.get_submodule(LAST_NORM[family])
    with torch.no_grad():
        for weight in norm.parameters():
            weight.copy_(torch.rand(weight.shape, generator=generator))
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    width = model.config.hidden_size  # type: ignore[union-attr]
    rows = torch.randn(6, width, generator=generator) + 1  # with a mean, which a LayerNorm takes away
    unembedding = load_unembedding(tmp_path, width)
    assert unembedding is not None
    found = logit_lens(rows, unembedding, 5)
    head = model.get_output_embeddings().double()  # type: ignore[operator]
    norm.double()
    with torch.no_grad():
        for i, row in enumerate(rows.double()):
            state = torch.randn(width, generator=generator).double()
            state -= state.mean()
            centred = row - row.mean()
            # Neither along the row nor along its centred form: then both kinds of norm keep their scale.
            for direction in torch.linalg.qr(torch.stack([centred, torch.ones_like(row)], 1))[0].T:
                state -= (state @ direction) * direction
            with torch.enable_grad():
                slope = torch.autograd.functional.jacobian(lambda h: head(norm(h)), state)
            change = slope.double() @ row * state.square().mean().sqrt()
            change -= change.mean()
            for ids, values, largest in ((found.top, found.top_value, True), (found.bottom, found.bottom_value, False)):
                want = change.topk(5, largest=largest)
                np.testing.assert_array_equal(ids[i], want.indices.numpy())
                np.testing.assert_allclose(values[i], want.values.numpy(), rtol=1e-3)


def test_a_small_vocabulary_names_no_token_twice() -> None:
    found = logit_lens(torch.randn(3, 8), Unembedding(torch.randn(5, 8), torch.ones(8)), 10)
    assert found.top.shape == (3, 5)
    for row in (*found.top, *found.bottom):
        assert sorted(row.tolist()) == [0, 1, 2, 3, 4]


def test_only_sites_in_the_residual_stream_have_a_lens(tmp_path: Path) -> None:
    from tests.analyze.test_run import TARGET, nested

    made = planted(tmp_path / "cache")
    subject = subjects_of(
        made.cache.path, [("r", open_run(nested(made, tmp_path / "runs", "r")))], AnalyzeConfig(controls=False)
    )[0]
    assert subject.target == TARGET
    assert lens_of(subject, 5) is None  # a made-up cache names no model


def test_a_panel_shows_the_lens_and_the_domain_of_its_examples(tmp_path: Path) -> None:
    """A cache of the demo model's width that says it is the demo model's, with a domain for every document."""
    from sparse_pipeline.shared.coders import build_coder
    from sparse_pipeline.shared.coders.topk import TopKConfig
    from sparse_pipeline.shared.runs.folder import create_run

    site = "layer_02.mlp_out"
    cache = make_cache(tmp_path / "cache", 60, 16, {site: 128}, config={"harvest": {"model": "demo"}})
    records = [DocumentRecord(int(d), "x", "even" if d % 2 == 0 else "odd") for d in np.unique(cache.doc_id)]
    (cache.path / DOCUMENTS).write_bytes(b"".join(record.to_line() for record in records))
    coder = build_coder(TopKConfig(latents=24, k=4), 128, 128, tied=True, generator=Generator().manual_seed(0))
    run = create_run(tmp_path / "runs", "r", {}, {})
    where = {"path": str(cache.path), "identity": cache.identity}
    run.finish(coder, {}, {"source": site, "target": site, "cache": where})
    reports = {"top_activations": TopActivationsConfig(sample=16)}
    result = analyze([run.path], AnalyzeConfig(out=tmp_path / "reports", controls=False, reports=reports))
    document = json.loads((result.report.parent / "report.json").read_text())
    data = document["runs"][0]["reports"]["top_activations"]["data"]
    assert data["logit_lens"] is True
    assert set(data["base_agreement"]) == {"token", "domain"}
    with gzip.open(result.report.parent / "r" / "latents.jsonl.gz", "rt") as file:
        latents = [json.loads(line) for line in file]
    folder = model_folder("demo")
    assert folder is not None
    tensors = load_file(folder / "model.safetensors")
    logits = (coder.w_dec.detach() * (tensors["model.norm.weight"].float() + 1)) @ tensors[
        "model.embed_tokens.weight"
    ].float().T
    blocks = latents[3]["panels"]["top_activations"]
    table = next(b for b in blocks if b.get("title") == "Output tokens")
    assert table["rows"][0][0] == f"<{int(logits[3].argmax())}>"  # no tokenizer in this cache: ids
    assert table["rows"][0][2] == f"<{int(logits[3].argmin())}>"
    items = [item for b in blocks if b["type"] == "examples" for group in b["groups"] for item in group["items"]]
    assert items
    assert all(item["domain"] == ("even" if item["document"] % 2 == 0 else "odd") for item in items)


def test_the_token_of_one_latent_is_still_found_without_a_model(tmp_path: Path) -> None:
    made = planted(tmp_path / "cache")
    reports = {"top_activations": TopActivationsConfig(lens=0)}
    config = AnalyzeConfig(out=tmp_path / "reports", controls=False, reports=reports)
    result = analyze([made.run(tmp_path / "runs").path], config)
    document = json.loads((result.report.parent / "report.json").read_text())
    data = document["runs"][0]["reports"]["top_activations"]["data"]
    assert data["logit_lens"] is False
    assert data["common_peaks"][0]["latents"] >= 1
    assert ONE_TOKEN in [entry["latent"] for entry in data["ranking"]]
