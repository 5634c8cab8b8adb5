"""Caches that come in and go out: the same numbers, checked with NumPy and the formats' own libraries."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value, load_from_disk
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file

import sparse_pipeline as sp
from sparse_pipeline import pipeline
from sparse_pipeline.shared.cache import Cache, Flag, open_cache, verify_cache
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.configs.topk import TopKConfig
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.shared.hook_names import from_hook_name, to_hook_name
from sparse_pipeline.transfer.delphi import export_delphi
from sparse_pipeline.transfer.incoming import Imported, ImportSettings, import_cache
from sparse_pipeline.transfer.outgoing import export_sites
from tests.synthetic import make_cache

N, CTX, D = 12, 16, 8
MID, OUT = "layer_02.resid_mid", "layer_02.mlp_out"


def numbers(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, np.ndarray]:
    """Activations [N, CTX, D] and token ids [N, CTX] that begin with 5."""
    generator = torch.Generator().manual_seed(3)
    tokens = np.random.default_rng(3).integers(6, 90, (N, CTX))
    tokens[:, 0] = 5
    return torch.randn(N, CTX, D, generator=generator).to(dtype), tokens


def imported(source: Path, tmp_path: Path, **settings: Any) -> tuple[Imported, Cache]:
    result = import_cache(ImportSettings(source, tmp_path / "cache/in", **settings))
    report = verify_cache(result.path)
    assert report.ok, report
    return result, open_cache(result.path)


def all_rows(cache: Cache, site: str) -> torch.Tensor:
    return cache.rows(site, np.arange(cache.n_rows))


def test_saelens_dataset(tmp_path: Path) -> None:
    """One column per hook [ctx, d], and token_ids, as its runner makes them; two shards of one dataset."""
    acts, tokens = numbers()
    hook = "blocks.2.hook_resid_mid"
    features = Features({hook: Array2D((CTX, D), "float32"), "token_ids": Sequence(Value("int32"), length=CTX)})
    Dataset.from_dict({hook: acts.numpy(), "token_ids": tokens}, features=features).save_to_disk(
        str(tmp_path / "sae"), num_shards=2
    )
    result, cache = imported(tmp_path / "sae", tmp_path, model="gpt2")
    assert result.sites == {MID: hook}
    assert result.unknown == ("tokenizer", "documents")
    assert torch.equal(all_rows(cache, MID), acts.reshape(-1, D))
    assert np.array_equal(cache.tokens, tokens)
    assert cache.config["resolved"]["bos_token_id"] == 5
    assert (cache.flags[:, 0] & Flag.BOS).all()
    assert not (cache.flags[:, 1:] & Flag.BOS).any()
    rest = acts[:, 1:].reshape(-1, D).double().numpy()
    np.testing.assert_allclose(cache.stats(MID).rest.mean, rest.mean(0), rtol=1e-6)
    assert cache.stats(MID).rest.n == N * (CTX - 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_safetensors_in_several_files(dtype: torch.dtype, tmp_path: Path) -> None:
    """Two sites, files in natural order: shard_10 after shard_2."""
    acts, tokens = numbers(dtype)
    (tmp_path / "s").mkdir()
    for number, (start, stop) in zip((1, 2, 10), ((0, 5), (5, 6), (6, N)), strict=True):
        part = {
            MID: acts[start:stop].contiguous(),
            OUT: -acts[start:stop].flip(2).contiguous(),
            "tokens": torch.from_numpy(tokens[start:stop]).contiguous(),
            "extra": torch.zeros(2, dtype=torch.int64),
        }
        save_file(part, tmp_path / f"s/shard_{number}.safetensors")
    result, cache = imported(tmp_path / "s", tmp_path)
    assert result.ignored == ("extra",)
    assert cache.spec(MID).logical_dtype == ("bfloat16" if dtype == torch.bfloat16 else "float32")
    assert torch.equal(all_rows(cache, MID), acts.reshape(-1, D).to(all_rows(cache, MID).dtype))
    assert torch.equal(all_rows(cache, OUT).float(), -acts.flip(2).reshape(-1, D).float())
    assert np.array_equal(cache.tokens, tokens)
    again = import_cache(ImportSettings(tmp_path / "s", result.path))
    assert again == result, "importing again finds it complete"


def test_numpy_rows_without_tokens_or_sequences(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(300, D)).astype(np.float32)
    (tmp_path / "n").mkdir()
    np.save(tmp_path / "n/a_0.npy", rows[:100])
    np.save(tmp_path / "n/a_1.npy", rows[100:])
    result, cache = imported(tmp_path / "n", tmp_path, sites={"activations": "layer_00.mlp_out"}, ctx=64)
    assert (cache.n_rows, result.padding) == (320, 20)
    assert result.unknown == ("model", "tokens", "tokenizer", "sequences", "BOS", "documents")
    assert "the last sequence is filled up with 20 rows of padding" in str(result)
    assert np.array_equal(all_rows(cache, "layer_00.mlp_out").numpy()[:300], rows)
    assert cache.manifest["n_tokens"] == 300
    assert not cache.has_tokens
    assert not cache.has_bos
    assert cache.config["imported"]["unknown"] == list(result.unknown)
    with pytest.raises(UsageError, match="the cache was imported"):
        from sparse_pipeline.shared.overview.find import frozen_settings

        frozen_settings(cache.path)


def test_pt_files_are_read_with_weights_only(tmp_path: Path) -> None:
    acts, tokens = numbers()
    torch.save({"model.layers.2.mlp:out": acts, "input_ids": torch.from_numpy(tokens)}, tmp_path / "a.pt")
    _, cache = imported(tmp_path / "a.pt", tmp_path)
    assert torch.equal(all_rows(cache, "model.layers.2.mlp:out"), acts.reshape(-1, D))
    assert cache.spec("model.layers.2.mlp:out").module_path == "model.layers.2.mlp"
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return marker.touch, ()

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    for name in ("evil.pt", "evil.npy"):
        with pytest.raises(DataError, match=f"{name} cannot be read as tensors alone"):
            imported(tmp_path / name, tmp_path)
    assert not marker.exists()


def broken(kind: str, folder: Path) -> dict[str, Any]:
    """A source with one thing wrong with it; the settings to import it with."""
    folder.mkdir()
    acts, tokens = numbers()
    rows = {MID: acts, "tokens": torch.from_numpy(tokens)}
    if kind == "nan":
        acts[3, 2, 1] = float("nan")
    if kind == "tokens":
        rows["tokens"] = rows["tokens"][:-1]
    if kind == "rows":
        rows[OUT] = acts[:-1].clone()
    if kind == "column":
        rows["some.name"] = acts.clone()
    if kind == "float64":
        rows[MID] = acts.double()
    if kind != "empty":
        save_file({name: value.contiguous() for name, value in rows.items()}, folder / "a.safetensors")
    if kind == "width":
        save_file({MID: acts[..., :4].contiguous(), "tokens": rows["tokens"]}, folder / "b.safetensors")
    if kind == "truncated":
        (folder / "a.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:-100])
    return {"ctx": 4} if kind == "ctx" else {"sites": {"x": MID}} if kind == "site" else {}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"column 'layer_02.resid_mid': row 50 has a number that is not finite"),
        ("tokens", r"tokens has 176 entries of torch.int64, expected 192 whole numbers"),
        ("rows", r"its arrays have different numbers of rows"),
        ("column", r"the site of column 'some.name' is not known"),
        ("float64", r"is torch.float64, which no storage holds exactly"),
        ("empty", r"found nothing, expected a Hugging Face dataset"),
        ("width", r"b.safetensors: layer_02.resid_mid is \[12, 16, 4\] .* as in .*a.safetensors: \[12, 16, 8\]"),
        ("truncated", r"a.safetensors cannot be read as tensors alone"),
        ("ctx", r"--ctx 4: the source has sequences of 16 rows"),
        ("site", r"--site x=…: no such column"),
    ],
)
def test_what_cannot_be_imported(kind: str, message: str, tmp_path: Path) -> None:
    settings = broken(kind, tmp_path / "s")
    with pytest.raises((DataError, UsageError), match=message):
        import_cache(ImportSettings(tmp_path / "s", tmp_path / "cache/in", **settings))
    assert not (tmp_path / "cache/in/manifest.json").exists()


def test_out_and_in_again_is_the_same_cache(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=40, ctx=16, sites={MID: 32, OUT: 24}, packing="document")
    done = export_sites(cache, (), tmp_path / "st", "safetensors")
    assert (done.rows, done.files) == (640, len(cache.shards))
    first = load_file(tmp_path / f"st/activations-00000-of-{done.files:05d}.safetensors")
    assert torch.equal(first[MID], cache.chunk(MID, 0)[: len(first[MID])])
    result, back = imported(tmp_path / "st", tmp_path)
    assert result.sites == {MID: MID, OUT: OUT}
    for site in (MID, OUT):
        assert torch.equal(all_rows(back, site).view(torch.uint16), all_rows(cache, site).view(torch.uint16))
        np.testing.assert_array_equal(back.stats(site).rest.mean, cache.stats(site).rest.mean)
    for name in ("tokens", "doc_id", "pos_in_doc", "flags"):
        assert np.array_equal(getattr(back, name), getattr(cache, name)), name
    with pytest.raises(UsageError, match="already exists"):
        export_sites(cache, (), tmp_path / "st", "safetensors")
    with pytest.raises(UsageError, match="no site 'x'"):
        export_sites(cache, ("x",), tmp_path / "x", "safetensors")
    assert not (tmp_path / "x").exists()


def test_arrow_is_a_dataset_under_transformer_lens_names(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=40, ctx=16, sites={MID: 32, OUT: 24})
    export_sites(cache, (MID,), tmp_path / "ds", "arrow")
    found = load_from_disk(str(tmp_path / "ds")).with_format("numpy")
    assert found.column_names == ["blocks.2.hook_resid_mid", "token_ids"]
    assert len(found) == cache.n_seq
    np.testing.assert_array_equal(
        found[:]["blocks.2.hook_resid_mid"].reshape(-1, 32), all_rows(cache, MID).float().numpy()
    )
    np.testing.assert_array_equal(found[:]["token_ids"], cache.tokens)
    _, back = imported(tmp_path / "ds", tmp_path, storage="bfloat16")
    assert torch.equal(all_rows(back, MID).view(torch.uint16), all_rows(cache, MID).view(torch.uint16))


def test_delphi_holds_every_code_once(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=24, ctx=16, sites={MID: 32}, packing="document")
    coder = build_coder(TopKConfig(latents=52, k=4), 32, 32, tied=True, generator=torch.Generator().manual_seed(0))
    coder.source = MID
    export_delphi(cache, coder.eval(), tmp_path / "d", labels={7: 'the "ü"'})
    (explanation,) = (tmp_path / "d/explanations").iterdir()  # as delphi's explainer writes it
    assert explanation.name == f"{cache.spec(MID).module_path}_latent7.txt"
    assert json.loads(explanation.read_text(encoding="utf-8")) == 'the "ü"'
    dense = np.zeros((24, 16, 52), np.float32)
    (module,) = (one for one in (tmp_path / "d").iterdir() if one.name != "explanations")
    files = sorted(module.glob("*.safetensors"))
    assert module.name == cache.spec(MID).module_path
    assert len(files) == 5
    for file in files:
        start, stop = map(int, file.stem.split("_"))
        part = load_numpy(file)
        assert part["locations"].dtype == np.uint16
        assert part["locations"][:, 2].max() <= stop - start
        where = part["locations"].astype(np.int64) + np.array([0, 0, start])
        assert (dense[tuple(where.T)] == 0).all(), "no code twice"
        dense[tuple(where.T)] = part["activations"]
        np.testing.assert_array_equal(part["tokens"], cache.tokens)
    expected = coder.encode(all_rows(cache, MID)).dense().detach().numpy().reshape(24, 16, 52)
    expected[(cache.flags & Flag.PADDING) != 0] = 0
    np.testing.assert_array_equal(dense, expected)
    assert json.loads((module / "config.json").read_text())["cache_ctx_len"] == 16


def test_hook_names_and_back() -> None:
    for kind in ("resid_pre", "resid_mid", "resid_post", "mlp_in", "mlp_out", "attn_in", "attn_out"):
        assert from_hook_name(to_hook_name(f"layer_08.{kind}")) == f"layer_08.{kind}"
    assert to_hook_name("model.layers.8.mlp:in") == "model.layers.8.mlp:in"


def test_train_and_analyze_an_imported_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows without tokens: the reports that need tokens say so."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    z = (rng.random((4096, 40)) < 0.1) * rng.exponential(1, (4096, 40))
    np.save("rows.npy", (z @ rng.normal(size=(40, 16))).astype(np.float32))
    command = "cache import rows.npy --name rows --site activations=layer_03.resid_post"
    assert pipeline.run(command.split()) == 0
    (run,) = sp.run_train(
        cache="rows", source="layer_03.resid_post", target=None, variant="topk", coder={"latents": 64, "k": 4},
        data={"batch_size": 256, "epochs": 8}, min_steps=10, name="r",
    )  # fmt: skip
    assert 0 < run.fvu < 0.9
    capsys.readouterr()
    assert pipeline.run(["analyze", "r", "--set", "analyze.controls=false"]) == 0
    err = capsys.readouterr().err
    assert "not made: top_activations: needs tokens, and cache/rows was imported without any" in err
    assert {"correlation", "global"} <= set(sp.open_report("r").figures["report"])
    assert pipeline.run(["analyze", "r", "--only", "top_activations"]) == 2
    assert "needs tokens" in capsys.readouterr().err
    assert pipeline.run(["cache", "export", "rows", "out", "--to", "delphi", "--run", "r"]) == 2
    assert "delphi needs tokens" in capsys.readouterr().err
    assert pipeline.run(["cache", "export", "rows", "out", "--to", "arrow", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == {"layer_03.resid_post": "blocks.3.hook_resid_post"}
    assert pipeline.run(["verify", "rows"]) == 0
    assert pipeline.run(["status"]) == 0
    assert pipeline.run(["inspect", "rows"]) == 0
