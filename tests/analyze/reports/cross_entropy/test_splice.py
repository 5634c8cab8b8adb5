"""The model's loss with a coder spliced in, against the plain Hugging Face model and hooks of the test's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.cross_entropy.model import load_model, model_of
from sparse_pipeline.analyze.reports.cross_entropy.report import CrossEntropyConfig
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.models.folder import model_folder
from sparse_pipeline.models.sequences import choose_sequences
from sparse_pipeline.models.sites import resolve_sites
from sparse_pipeline.models.splice import Replace, spliced
from sparse_pipeline.models.spliced_loss import Loss, losses
from sparse_pipeline.shared.cache import Cache, SiteSpec, open_cache
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.shared.runs.folder import create_run
from tests.harvest.test_capture import random_model
from tests.synthetic import make_cache

MID, OUT, POST = "layer_02.resid_mid", "layer_02.mlp_out", "layer_02.resid_post"
D = 128


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("splice")
    (folder / "text.txt").write_text("Return a list of the words in the string, using sep as the delimiter.\n" * 60)
    config = HarvestConfig(
        dataset=str(folder / "text.txt"), sites=(MID, OUT, POST), ctx=24, tokens=480, cache_dir=folder, name="c"
    )
    harvest(config)
    return open_cache(folder / "c")


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    """The model as anyone would load it."""
    return AutoModelForCausalLM.from_pretrained(
        model_folder("demo"), dtype=torch.float32, attn_implementation="eager"
    ).eval()


def ids_of(cache: Cache, sequences: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(cache.tokens[sequences].astype(np.int64))


def zero_out(_: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(y)


def spliced_losses(
    cache: Cache,
    sequences: np.ndarray,
    replacements: dict[str, Replace],
    *,
    source: str = MID,
    target: str = OUT,
    batch: int = 4,
    massive: np.ndarray | None = None,
) -> dict[str, Loss]:
    return losses(
        model_of(cache, "cpu"),
        cache,
        sequences,
        source=source,
        target=target,
        batch=batch,
        replacements=replacements,
        massive=massive,
    )


def test_clean_loss_is_transformers_own(cache: Cache, plain: torch.nn.Module) -> None:
    sequences = choose_sequences(cache, tuple(cache.shards), 6)
    found = spliced_losses(cache, sequences, {"same": lambda _, y: y})
    ids = ids_of(cache, sequences)
    with torch.no_grad():
        want = plain(input_ids=ids, labels=ids).loss
    assert found["clean"].mean("ce", 0) == pytest.approx(float(want), rel=1e-5)
    assert found["clean"].tokens.tolist() == [6] * 23 + [0]
    assert found["same"].mean("ce", 1) == pytest.approx(found["clean"].mean("ce", 1), rel=1e-6)
    assert found["same"].mean("kl", 1) == pytest.approx(0, abs=1e-6)


def test_zero_at_an_output_is_a_plain_hook(cache: Cache, plain: torch.nn.Module) -> None:
    sequences = choose_sequences(cache, tuple(cache.shards), 4)
    found = spliced_losses(cache, sequences, {"zero": zero_out})
    ids = ids_of(cache, sequences)
    layer = plain.model.layers[2]
    handle = layer.post_feedforward_layernorm.register_forward_hook(lambda *_: torch.zeros(4, 24, D))
    try:
        with torch.no_grad():
            want = plain(input_ids=ids, labels=ids).loss
    finally:
        handle.remove()
    assert found["zero_all"].mean("ce", 0) == pytest.approx(float(want), rel=1e-5)
    assert found["zero_all"].mean("kl", 0) > 0.01


def test_massive_rows_keep_their_activations_and_do_not_count(cache: Cache, plain: torch.nn.Module) -> None:
    sequences = choose_sequences(cache, tuple(cache.shards), 4)
    massive = np.random.default_rng(0).random((cache.n_seq, cache.ctx)) < 0.1
    massive[:, 0] = False
    found = spliced_losses(cache, sequences, {"zero": zero_out}, massive=massive.reshape(-1))
    ids, rows = ids_of(cache, sequences), torch.from_numpy(massive[sequences])
    keeps = rows.clone()
    keeps[:, 0] = True
    layer = plain.model.layers[2]
    handle = layer.post_feedforward_layernorm.register_forward_hook(
        lambda _, __, output: torch.where(keeps[..., None], output, 0.0)
    )
    try:
        with torch.no_grad():
            logits = plain(input_ids=ids).logits
    finally:
        handle.remove()
    counted = ~rows[:, 1:-1]  # the predictions made at positions 1 … T − 2
    ce = torch.nn.functional.cross_entropy(logits[:, 1:-1].transpose(1, 2), ids[:, 2:], reduction="none")
    assert found["zero_ordinary"].mean("ce", 1) == pytest.approx(float(ce[counted].mean()), rel=1e-5)
    assert int(found["clean_ordinary"].tokens[1:].sum()) == int(counted.sum())
    without = spliced_losses(cache, sequences, {"zero": zero_out})
    assert set(without) == {"clean", "zero", "zero_all"}
    assert without["zero"].mean("ce", 1) == found["zero"].mean("ce", 1)


def test_overwriting_an_input_reaches_the_residual_stream_too(cache: Cache, plain: torch.nn.Module) -> None:
    """resid_mid := 0, against the same done from the other side: attention writes the negative of what came in."""
    ids = ids_of(cache, np.array([0, 3]))
    spec = cache.sites[MID]
    assert spec.io == "in"
    with torch.inference_mode(), spliced(model_of(cache, "cpu"), spec, spec, lambda _, y: torch.zeros_like(y)):
        found = model_of(cache, "cpu")(input_ids=ids).logits
    layer, held = plain.model.layers[2], {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args: held.update(x=args[0])),
        layer.post_attention_layernorm.register_forward_hook(lambda *_: -held["x"]),
    ]
    try:
        with torch.no_grad():
            want = plain(input_ids=ids).logits
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["attn_in", "mlp_in", "resid_mid"])
def test_an_input_without_a_norm_before_it_is_exchanged_for_its_module_alone(kind: str) -> None:
    """OLMo-2's attention and MLP read the residual stream as it is; against its layer written out by hand."""
    model = random_model("olmo2")
    (site,) = resolve_sites((f"layer_01.{kind}",), model)
    assert site.io == "in"
    spec = SiteSpec(site.name, 24, "float32", site.module_path, site.layer, site.kind, site.io)
    ids = torch.arange(20)[None] % 90
    with torch.inference_mode(), spliced(model, spec, spec, lambda _, y: 0.5 * y + 1):
        found = model(input_ids=ids).logits

    layer = model.get_submodule("model.layers.1")

    def by_hand(
        hidden_states: torch.Tensor, attention_mask: object = None, position_embeddings: object = None, **rest: object
    ) -> torch.Tensor:
        x = hidden_states
        read = 0.5 * x + 1 if kind == "attn_in" else x
        attended, _ = layer.self_attn(
            hidden_states=read, attention_mask=attention_mask, position_embeddings=position_embeddings
        )
        middle = x + layer.post_attention_layernorm(attended)
        read = middle if kind == "attn_in" else 0.5 * middle + 1
        if kind == "resid_mid":
            middle = read
        return middle + layer.post_feedforward_layernorm(layer.mlp(read))

    layer.forward = by_hand  # type: ignore[assignment]
    with torch.no_grad():
        want = model(input_ids=ids).logits
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", [MID, OUT, POST])
def test_what_is_seen_is_what_was_cached_and_nothing_stays_behind(cache: Cache, site: str) -> None:
    model = model_of(cache, "cpu")
    ids = ids_of(cache, np.array([1]))
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        with spliced(model, cache.sites[site], cache.sites[site], lambda x, _: x * 0.5) as seen:
            changed = model(input_ids=ids).logits
        after = model(input_ids=ids).logits
    cached = cache.rows(site, np.arange(24, 48)).float()
    assert float((seen["source"][0] - cached).norm() / cached.norm()) < 0.01
    assert torch.equal(before, after)
    assert not torch.allclose(before, changed, atol=1e-3)


def test_documents_that_were_kept_apart_are_spliced_apart(plain: torch.nn.Module, tmp_path: Path) -> None:
    """Against every document run by itself, its first row and its last prediction aside."""
    lines = [f"def function_{i}(values): return sorted(values)[{i}:]" for i in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = HarvestConfig(
        dataset=str(tmp_path / "text.jsonl"), sites=(OUT,), ctx=40, tokens=480, cross_document_attention=False,
        cache_dir=tmp_path, name="c",
    )  # fmt: skip
    harvest(config)
    apart = open_cache(tmp_path / "c")
    sequences = np.arange(apart.n_seq)
    found = spliced_losses(apart, sequences, {"zero": zero_out}, source=OUT, batch=5)

    norm = plain.model.layers[2].post_feedforward_layernorm
    want: dict[str, list[torch.Tensor]] = {"clean": [], "zero": [], "zero_all": []}
    n_stretches = 0
    for tokens, doc_id, flags in zip(apart.tokens, apart.doc_id, apart.flags, strict=True):
        for doc in np.unique(doc_id[flags != 4]):
            ids = torch.from_numpy(tokens[(doc_id == doc) & (flags != 4)].astype(np.int64))[None]
            n_stretches += 1
            for name, from_row in (("clean", ids.shape[1]), ("zero", 1), ("zero_all", 0)):

                def cut(_m: object, _a: object, y: torch.Tensor, start: int = from_row) -> torch.Tensor:
                    return torch.cat([y[:, :start], torch.zeros_like(y[:, start:])], 1)

                handle = norm.register_forward_hook(cut)
                with torch.no_grad():
                    logits = plain(input_ids=ids).logits[0, :-1]
                handle.remove()
                want[name].append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    assert n_stretches > len(sequences) + 5
    for name, values in want.items():
        assert found[name].mean("ce", 0) == pytest.approx(float(torch.cat(values).mean()), rel=1e-4)
        assert found[name].mean("ce", 1) == pytest.approx(float(torch.cat([v[1:] for v in values]).mean()), rel=1e-4)
    assert found["clean"].tokens[0] == n_stretches


def test_every_batch_is_compared_with_the_cache(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache whose first sequence is right and whose fifth is not."""
    rows = Cache.rows

    def wrong(self: Cache, site: str, index: np.ndarray) -> torch.Tensor:
        return rows(self, site, (index + 24) if index[0] == 4 * 24 else index)

    monkeypatch.setattr(Cache, "rows", wrong)
    with pytest.raises(DataError, match="in sequence 4"):
        spliced_losses(cache, np.arange(8), {})


def run_with(cache: Cache, folder: Path, exact: bool) -> Path:
    """An SAE on resid_mid: x = relu(x) − relu(−x) exactly, or weights at random."""
    coder = build_coder(TopKConfig(latents=2 * D, k=2 * D), D, D, tied=True, generator=torch.Generator().manual_seed(0))
    if exact:
        with torch.no_grad():
            signed = torch.cat([torch.eye(D), -torch.eye(D)])
            coder.w_enc.copy_(signed)
            coder.w_dec.copy_(signed)
    run = create_run(folder, "exact" if exact else "random", {}, {})
    where = {"path": str(cache.path), "identity": cache.identity}
    run.finish(coder, {}, {"source": MID, "target": MID, "cache": where, "training": {"seed": 0}})
    return run.path


def test_a_perfect_coder_recovers_everything_and_an_untrained_one_does_not(cache: Cache, tmp_path: Path) -> None:
    config = AnalyzeConfig(
        out=tmp_path / "reports", reports={"cross_entropy": CrossEntropyConfig(sequences=8, batch=3)}
    )
    result = analyze([run_with(cache, tmp_path / "runs", exact=True)], config)
    (run,), (control,) = result.runs, result.controls
    assert run["ce_recovered"] == pytest.approx(1, abs=1e-4)
    assert run["ce_recovered_with_bos"] == pytest.approx(1, abs=1e-4)
    assert run["kl"] == pytest.approx(0, abs=1e-5)
    assert control["ce_recovered"] < 0.9
    document = json.loads((result.report.parent / "report.json").read_text())
    losses_of = document["runs"][0]["reports"]["cross_entropy"]["data"]["losses"]
    assert losses_of["the model as it is"][0] < losses_of["the mean"][0]


def test_coders_between_the_same_sites_share_the_passes_without_them(cache: Cache, tmp_path: Path) -> None:
    runs = [run_with(cache, tmp_path / "runs", exact=exact) for exact in (True, False)]
    reports = {"cross_entropy": CrossEntropyConfig(sequences=4, batch=4)}
    model, passes = model_of(cache, "cpu"), []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    try:
        both = analyze(runs, AnalyzeConfig(out=tmp_path / "both", reports=reports, controls=False))
    finally:
        handle.remove()
    assert len(passes) == 1 + 2 * (2 + 2)  # the model as it is; position 0 kept and not: two coders, zero and the mean
    for run, together in zip(runs, both.runs, strict=True):
        (alone,) = analyze([run], AnalyzeConfig(out=tmp_path / run.name, reports=reports, controls=False)).runs
        assert {key: alone[key] for key in alone if key.startswith(("ce_", "kl"))} == {
            key: together[key] for key in together if key.startswith(("ce_", "kl"))
        }
    assert both.runs[0]["ce_recovered"] != both.runs[1]["ce_recovered"]


def test_another_models_cache_is_refused(tmp_path: Path) -> None:
    settings = {"harvest": {"model": "demo"}, "resolved": {"attention": "eager"}}
    wrong = make_cache(tmp_path / "wrong", 8, 24, {MID: D}, config=settings)
    spec = wrong.sites[MID]
    object.__setattr__(spec, "module_path", "model.layers.2.pre_feedforward_layernorm")
    object.__setattr__(spec, "io", "in")
    with pytest.raises(DataError, match="activations at .* differ"):
        spliced_losses(wrong, np.array([0]), {}, target=MID, batch=1)


def test_a_model_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = make_cache(tmp_path / "gone", 4, 8, {MID: 8}, config={"harvest": {"model": "/no/such/model"}})
    with pytest.raises(UsageError, match="not on this machine"):
        model_of(gone, "cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot load"):
        load_model(tmp_path, None, "cpu")


def test_sequences_are_spread_and_never_repeated(cache: Cache) -> None:
    assert choose_sequences(cache, tuple(cache.shards), 3).tolist() == [0, 10, 19]
    assert choose_sequences(cache, tuple(cache.shards), 10**6).tolist() == list(range(cache.n_seq))
