"""Our figures against SAEBench's own functions on the same coder and activations: MDL, SCR, TPP, meta-structure.

Its evaluations as a whole need a hub; the functions below are all that they compute with. Probes are ours on both sides
where the comparison is exact. SAEBench averages over a document's rows by leaving out zero vectors, but encodes these
when it sets latents to 0 there, so the documents here have no padding.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparse_pipeline.analyze.probes.labels import Labels
from sparse_pipeline.analyze.probes.texts import TextProbes, fit_texts, mean_activations
from sparse_pipeline.analyze.reports.description_length.bits import rounded
from sparse_pipeline.analyze.reports.meta_structure.config import MetaStructureConfig
from sparse_pipeline.analyze.reports.meta_structure.fit import meta_of, random_rows
from sparse_pipeline.analyze.reports.scr.config import ScrConfig
from sparse_pipeline.analyze.reports.scr.report import ScrReport
from sparse_pipeline.analyze.reports.tpp.config import TppConfig
from sparse_pipeline.analyze.reports.tpp.report import TppReport
from sparse_pipeline.exchange.export import Wanted, export
from sparse_pipeline.shared.codes.sparse import SparseCodes
from tests.analyze.classed import SITE, Classed, classed
from tests.analyze.composed import composed_rows
from tests.interop.peers import peer

general = peer("sae_bench.sae_bench_utils.general_utils")
main = peer("sae_bench.evals.scr_and_tpp.main")
training = peer("sae_bench.evals.sparse_probing.probe_training")
collection = peer("sae_bench.sae_bench_utils.activation_collection")
mdl = peer("sae_bench.evals.mdl.main")
meta = peer("sae_bench.evals.meta_structure.main")

TOKENS, BATCH, NS = 6, 64, (2, 5, 10)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Classed:
    return classed(tmp_path_factory.mktemp("classed") / "cache", n_seq=400)


@pytest.fixture(scope="module")
def sae(made: Classed, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The coder as SAEBench loads our export of it."""
    folder = tmp_path_factory.mktemp("export")
    wanted = Wanted(to="saebench", out=folder / "out", model="google/gemma-2-2b")
    out = export([made.run(folder / "runs").path], wanted).out
    names: dict[str, Any] = {"__file__": str(out / "saebench_saes.py"), "__name__": "saebench_saes"}
    exec((out / "saebench_saes.py").read_text(), names)
    ((name, found),) = names["selected_saes"]()
    return general.load_and_format_sae(name, found, "cpu")[1]


def rows_of(made: Classed, documents: np.ndarray) -> torch.Tensor:
    """[D, L, d] the rows of documents, none of which is shorter than L."""
    rows = np.stack([made.rows_of(document, TOKENS) for document in documents])
    assert rows.shape[1] == TOKENS
    return made.cache.rows(SITE, rows.reshape(-1)).float().reshape(*rows.shape, -1)


def as_theirs(probes: TextProbes) -> list[Any]:
    found = []
    for weight, bias in zip(probes.weight, probes.bias, strict=True):
        probe = training.Probe(len(weight), torch.float32)
        with torch.no_grad():
            probe.net.weight.copy_(torch.from_numpy(weight)[None])
            probe.net.bias.fill_(float(bias))
        found.append(probe)
    return found


def test_mdl(made: Classed, sae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = made.cache.rows(SITE, np.flatnonzero(made.subject().rest_rows)).float()
    monkeypatch.setattr(mdl, "config", SimpleNamespace(sae_batch_size=1), raising=False)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # it wants a GPU for one sum
    store = SimpleNamespace(get_filtered_llm_batch=lambda: x)
    with torch.no_grad():
        dense = sae.encode(x).float()
    top = dense.max(dim=0).values
    for bins in (4, 16, 64):
        edges = mdl.build_bins(torch.zeros_like(top), top, num_bins=bins)
        theirs = mdl.calculate_dl(dense.shape[1], edges, "cpu", store, sae, 5)
        ours = rounded(SparseCodes.from_dense(dense.numpy()), bins)
        print(f"MDL, {bins} bins: sae-bench {theirs:.6f}, here {ours.bits_as_saebench:.6f}")
        assert ours.bits_as_saebench == pytest.approx(theirs, rel=1e-3)
        middles = mdl.quantize_features_to_bin_midpoints(dense, edges)[dense > 0]
        assert np.mean(np.isclose(middles.numpy(), ours.values, rtol=1e-4)) > 0.999, "edges may round either way"


def test_scr(made: Classed, sae: Any) -> None:
    config = ScrConfig(ns=NS, headline=5, tokens=TOKENS, min_documents=10)
    collector = made.collected(ScrReport, config)
    found = collector.finalise().data
    names = ("professor / nurse", "male / female", "male_professor / female_nurse")
    assert len(found["pairs"]) == 2
    for pair, ours in zip(collector.pairs, found["pairs"], strict=True):
        texts = collector.codes.texts.only(pair.documents)
        probes = fit_texts(mean_activations(made.cache, SITE, texts), Labels(names, pair.labels), ~pair.scores)
        theirs = dict(zip(names, as_theirs(probes), strict=True))
        acts = [
            {
                key: rows_of(made, pair.documents[(pair.scores == scored) & (pair.labels[:, place] == answer)])
                for place, name in enumerate(names)
                for answer, key in ((1, name), (0, main.dataset_info.PAIRED_CLASS_KEYS[name]))
            }
            for scored in (False, True)
        ]
        effects = main.get_all_node_effects_for_one_sae(sae, theirs, list(names), True, acts[0], BATCH)
        means = collection.create_meaned_model_activations(acts[1])
        clean = main.get_probe_test_accuracy(theirs, list(names), means, 500, True)
        after = main.perform_feature_ablations(theirs, sae, BATCH, acts[1], effects, list(NS), list(names), 500, True)
        expected = main.get_scr_plotting_dict(after, clean)
        for n in NS:
            both = [ours[keep]["after"][str(n)]["score"] for keep in ("keep_first", "keep_second")]
            print(f"SCR of {pair.pair}, {n} latents: sae-bench "
                  f"{expected[f'scr_dir1_threshold_{n}']:.6f} {expected[f'scr_dir2_threshold_{n}']:.6f}, "
                  f"here {both[0]:.6f} {both[1]:.6f}")  # fmt: skip
            assert both == pytest.approx([expected[f"scr_dir{way}_threshold_{n}"] for way in (1, 2)], rel=1e-5)
            if (key := f"scr_metric_threshold_{n}") in expected:
                assert ours[f"keep_{ours['chosen']}"]["after"][str(n)]["score"] == pytest.approx(
                    expected[key], rel=1e-5
                )


def test_tpp(made: Classed, sae: Any) -> None:
    """Its negatives are one draw, ours all of them: the mean over many of its draws is our number."""
    config = TppConfig(ns=NS, headline=5, tokens=TOKENS, min_documents=20)
    collector = made.collected(TppReport, config)
    found, drawn = collector.finalise().data, collector.drawn
    member = Labels(drawn.names, (drawn.of_class[:, None] == np.arange(len(drawn.names))).astype(np.int8))
    x = mean_activations(made.cache, SITE, collector.codes.texts)
    names = list(drawn.names)
    probes = dict(zip(names, as_theirs(fit_texts(x, member, ~drawn.scores)), strict=True))
    acts = [
        {
            name: rows_of(made, drawn.documents[(drawn.scores == scored) & (drawn.of_class == place)])
            for place, name in enumerate(names)
        }
        for scored in (False, True)
    ]
    torch.manual_seed(0)
    draws = [main.get_all_node_effects_for_one_sae(sae, probes, names, False, acts[0], BATCH) for _ in range(50)]
    for place, name in enumerate(names):
        latents = found["latents"][place]
        effects = torch.stack([draw[name] for draw in draws]).mean(dim=0)
        assert set(effects.topk(3).indices.tolist()) <= set(latents[:5].tolist())
        assert (effects[latents[:3]] > 0).all()
    chosen = {name: torch.zeros(sae.W_dec.shape[0]) for name in names}
    for place, name in enumerate(names):  # ours, as effects that it sorts alike
        latents = found["latents"][place]
        chosen[name][latents] = torch.arange(len(latents), 0, -1).float()

    means = collection.create_meaned_model_activations(acts[1])
    totals = []
    for _ in range(60):
        clean = main.get_probe_test_accuracy(probes, names, means, 500, False)
        after = main.perform_feature_ablations(probes, sae, BATCH, acts[1], chosen, list(NS), names, 500, False)
        overall, _ = main.create_tpp_plotting_dict(after, clean)
        totals.append([overall[f"tpp_threshold_{n}_total_metric"] for n in NS])
    mean, error = np.mean(totals, axis=0), np.std(totals, axis=0) / np.sqrt(len(totals))
    for n, theirs, off in zip(NS, mean, error, strict=True):
        ours = found["scores"][str(n)]
        print(f"TPP, {n} latents: sae-bench {theirs:.4f} ± {off:.4f} over 60 draws, here {ours:.4f}")
        assert abs(ours - theirs) < 4 * off + 1e-9

    with torch.enable_grad():
        meant = collection.create_meaned_model_activations(acts[0])
        own, _ = training.train_probe_on_activations(
            meant, means, use_sklearn=False, batch_size=16, epochs=100, lr=1e-2, l1_penalty=1e-3,
            early_stopping_patience=100,
        )  # fmt: skip
    effects = main.get_all_node_effects_for_one_sae(sae, own, names, False, acts[0], BATCH)
    clean = main.get_probe_test_accuracy(own, names, means, 500, False)
    after = main.perform_feature_ablations(own, sae, BATCH, acts[1], effects, list(NS), names, 500, False)
    overall, _ = main.create_tpp_plotting_dict(after, clean)
    for n in NS:
        theirs, ours = overall[f"tpp_threshold_{n}_total_metric"], found["scores"][str(n)]
        print(f"TPP, {n} latents, with its own probes and one draw: sae-bench {theirs:.4f}, here {ours:.4f}")
        assert theirs == pytest.approx(ours, abs=0.15)


class Decoder:
    """What its meta-structure looks at of an SAE."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.W_dec, self.cfg = rows, SimpleNamespace(to_dict=dict)

    def to(self, **_: Any) -> Decoder:
        return self


@pytest.mark.timeout(1200)  # two trainings of 1,500 steps on each side
def test_meta_structure() -> None:
    """Two trainings of one kind of coder on the same rows: near one another, and far from random rows."""
    found = {}
    for name, rows in (("composed", composed_rows(96, 32, 16)), ("random", random_rows(96, 32, 1))):
        config = meta.MetaStructureEvalConfig(autocast=False)
        torch.manual_seed(0)
        with torch.enable_grad():
            output = meta.run_eval_single_sae("none", "none", Decoder(rows), config, "cpu")
        theirs = output.eval_result_metrics.meta_structure.decoder_fraction_variance_explained
        ours = meta_of(rows, MetaStructureConfig(), 0).explained
        print(f"Meta-structure of {name} rows: sae-bench {theirs:.4f}, here {ours:.4f}")
        found[name] = theirs, ours
    assert found["composed"][1] == pytest.approx(found["composed"][0], abs=0.1)
    assert found["random"][1] == pytest.approx(found["random"][0], abs=0.15)
