"""The stage as a whole: folders, controls, refusals, and what several runs share."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models

from sparse_pipeline.analyze.collect import collect
from sparse_pipeline.analyze.config import AnalyzeConfig, default_report
from sparse_pipeline.analyze.render import html
from sparse_pipeline.analyze.render.folder import report_folder
from sparse_pipeline.analyze.render.markdown import to_markdown
from sparse_pipeline.analyze.reports import REPORTS
from sparse_pipeline.analyze.reports.reconstruction.config import ReconstructionConfig
from sparse_pipeline.analyze.reports.reconstruction.report import ReconstructionReport
from sparse_pipeline.analyze.reports.top_activations.config import TopActivationsConfig
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.analyze.stream import batches as streaming
from sparse_pipeline.analyze.stream.batches import stream
from sparse_pipeline.analyze.subjects import choose_shards, subjects_of
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.config.settings import to_dict, validate
from sparse_pipeline.shared.errors import ConfigError, DataError, UsageError
from sparse_pipeline.shared.runs.folder import create_run, open_run
from sparse_pipeline.train.normalisation import moments_of
from tests.analyze.planted import CTX, N_SEQ, SOURCE, TARGET, Planted, planted
from tests.sealed import reseal
from tests.synthetic import make_cache

HOSTILE = ["</script><script>window.hacked=1</script>", "<img src=x onerror=window.hacked=1>", "a|b`c*", "\u2028", "\n"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Padded sequences, one document each, and a tokenizer whose pieces are an attack."""
    path = tmp_path_factory.mktemp("run") / "cache"
    world = planted(path, seed=3, packing="document")
    pieces = {f"▁word{i}": i for i in range(50)}
    for n, text in enumerate(HOSTILE):
        del pieces[f"▁word{n + 5}"]
        pieces[text] = n + 5
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="▁word0"))
    tokenizer.add_special_tokens(["▁word2"])
    tokenizer.save(str(path / "tokenizer.json"))
    return world


@pytest.fixture
def run(made: Planted, tmp_path: Path) -> Path:
    return made.run(tmp_path / "runs").path


def nested(made: Planted, folder: Path, name: str, seed: int = 0, freeze: tuple[str, ...] = ()) -> Path:
    """A Matryoshka coder that was moved a little from its start."""
    coder = build_coder(
        MatryoshkaConfig(latents=32, k=6, groups=(8, 24)),
        64,
        512,
        tied=False,
        generator=torch.Generator().manual_seed(seed),
    )
    coder.set_normalisation(*(moments_of(made.cache, site, coder.config.normalise) for site in (SOURCE, TARGET)))
    generator = torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():
        coder.w_enc.add_(0.2 * torch.randn(coder.w_enc.shape, generator=generator))
        coder.w_dec.copy_(torch.nn.functional.normalize(torch.randn(coder.w_dec.shape, generator=generator), dim=1))
    run = create_run(folder, name, {"seed": seed}, {})
    run.finish(
        coder,
        {"steps": 1, "tokens": 1, "fvu": 0.5, "evaluated_on": "heldout"},
        {
            "source": SOURCE,
            "target": TARGET,
            "cache": {"path": str(made.cache.path), "identity": made.cache.identity},
            "training": {"seed": seed, "freeze": list(freeze)},
        },
    )
    return run.path


def test_every_file_of_a_report(made: Planted, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the threads of a report's counts, which the other tests have one of
    other = nested(made, tmp_path / "runs", "nested <b>")
    result = analyze([run, other], AnalyzeConfig(out=tmp_path / "reports"))
    folder = result.report.parent
    document = json.loads((folder / "report.json").read_text())
    assert (document["schema"], document["schema_version"]) == ("sparse-coder-analysis", 1)
    assert [(r["name"], r["role"]) for r in document["runs"]] == [
        ("planted", "run"),
        ("nested <b>", "run"),
        ("untrained (nested <b>)", "control"),
        ("untrained (planted)", "control"),
    ]
    assert [r["folder"] for r in document["runs"]][:2] == ["planted", "nested_b"]
    for entry in document["runs"]:
        found = {path.name for path in (folder / entry["folder"]).iterdir()}
        tables = {"pairs.parquet", "neighbours.parquet", "position.parquet", "latents.parquet"}
        assert found == tables | ({"latents.jsonl.gz"} if entry["trained"] else set())
    assert set(result.to_dict()) == {"report", "runs", "controls", "comparison", "rows", "seconds"}
    assert {
        "name",
        "n_pairs_above",
        "n_pairs_above_with_bos",
        "bos_share_top",
        "fvu",
        "fvu_with_bos",
        "l0",
        "dead",
    } <= set(result.runs[0])
    text = str(result)
    assert "nested <b>" in text
    assert str(result.report) in text
    header = re.split(r"  +", text.splitlines()[0])
    twins = ["incl. pos. 0", "excl. massive"]
    shown = ["run", "FVU, all documents", *twins, "L0", "dead", "pairs", *twins, "pos. 0 in top", "distinct"]
    assert header == [*shown, "held-out FVU"], (
        "the order of REPORTS; one of the runs was measured on held-out documents"
    )
    legend = [re.split(r"  +", line.strip())[0] for line in text.splitlines() if line.startswith("  ")]
    assert legend == list(dict.fromkeys([*shown[1:], "held-out FVU"])), "every heading is explained"
    page = result.report.read_text(encoding="utf-8").split('id="document">')[0]
    assert "<dt>FVU</dt><dd>Fraction of variance unexplained" in page
    figures = document["runs"][1]["reports"]["global"]["figures"]
    assert figures["heldout_fvu"]["value"] == 0.5, (
        "what training measured comes first, under the name that it has there"
    )
    assert [(figures[key]["label"]) for key in ("heldout_fvu", "fvu")] == ["held-out FVU", "FVU, all documents"]
    assert "<dt>transcoder</dt>" in page
    assert "<dt>JumpReLU</dt>" not in page, "only the words that this report uses"
    markdown = (folder / "report.md").read_text()
    assert "nested &lt;b&gt;" in markdown
    assert "<script>" not in markdown
    groups = next(t for t in document["runs"][1]["reports"]["global"]["tables"] if t["key"] == "groups")
    assert [row[:2] for row in groups["rows"]] == [[1, 8], [2, 24]]
    # The last prefix is the whole dictionary: its error is the coder's.
    assert groups["rows"][-1][-1] == pytest.approx(document["runs"][1]["reports"]["global"]["figures"]["fvu"]["value"])


def test_prefix_reconstruction_is_that_of_the_cut_coder(made: Planted, tmp_path: Path) -> None:
    path = nested(made, tmp_path / "runs", "nested")
    config = AnalyzeConfig(out=tmp_path / "reports", controls=False, reports={"global": ReconstructionConfig()})
    document = json.loads((analyze([path], config).report.parent / "report.json").read_text())
    coder = open_run(path).load_coder()
    x, y = torch.from_numpy(made.z), torch.from_numpy(made.y).double()
    with torch.no_grad():
        z = coder.encode(x).dense()
        z[:, 8:] = 0
        y_hat = (z @ coder.w_dec + coder.b_dec) * coder.target_scale + coder.target_mean
    keep = torch.from_numpy((made.table.flags.reshape(-1) & 4) == 0) & (torch.arange(len(x)) % CTX > 0)
    fvu = (y - y_hat.double())[keep].square().sum() / (y - y[keep].mean(0))[keep].square().sum()
    rows = document["runs"][0]["reports"]["global"]["tables"][0]["rows"]
    assert rows[0][-1] == pytest.approx(float(fvu), rel=1e-5)


def test_a_run_with_a_frozen_decoder_is_a_control(made: Planted, tmp_path: Path) -> None:
    paths = [
        nested(made, tmp_path / "runs", "frozen", freeze=("w_dec",)),
        nested(made, tmp_path / "runs", "trained"),
        nested(made, tmp_path / "runs", "other_seed", seed=1),
    ]
    result = analyze(paths, AnalyzeConfig(out=tmp_path / "reports", reports={"global": ReconstructionConfig()}))
    assert [(r["name"], r["role"]) for r in result.runs] == [
        ("frozen", "control"),
        ("trained", "run"),
        ("other_seed", "run"),
    ]
    assert [r["name"] for r in result.controls] == [
        f"untrained ({n})" for n in ("other_seed", "trained")
    ]  # not of the control
    assert result.report.parent.name == "frozen+trained+other_seed-only-global"
    alone = AnalyzeConfig(out=tmp_path / "alone", controls=False, reports={"text": TopActivationsConfig()})
    page = analyze(paths[:1], alone).report.read_text(encoding="utf-8")
    assert 'id="panels-0-0"' in page, "its latents are listed: it is no control that was not trained"


def test_runs_that_began_alike_share_a_control(made: Planted, tmp_path: Path) -> None:
    paths = [nested(made, tmp_path / "runs", name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    result = analyze(paths, AnalyzeConfig(out=tmp_path / "reports", reports={"global": ReconstructionConfig()}))
    assert [r["name"] for r in result.controls] == ["untrained (a, b)", "untrained (c)"]
    # a transcoder begins by predicting the mean, of the ordinary rows
    assert result.controls[0]["fvu"] == pytest.approx(1, abs=2e-3)


def test_the_untrained_control_is_the_coder_before_its_first_step(made: Planted, tmp_path: Path) -> None:
    path = nested(made, tmp_path / "runs", "trained")
    control = subjects_of(made.cache.path, [("trained", open_run(path))], AnalyzeConfig())[1]
    fresh = build_coder(
        MatryoshkaConfig(latents=32, k=6, groups=(8, 24)),
        64,
        512,
        tied=False,
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(control.coder.w_enc, fresh.w_enc)
    torch.testing.assert_close(control.coder.target_scale, open_run(path).load_coder().target_scale)


def test_collectors_merge_as_if_one_had_seen_all(made: Planted, run: Path) -> None:
    config = AnalyzeConfig(controls=False)
    subject = subjects_of(made.cache.path, [("planted", open_run(run))], config)[0]

    def fed(shards: list[int]) -> dict:
        made_of = {name: s for name, s in config.reports.items() if REPORTS[s.kind].lacks(subject) is None}
        reports = {name: REPORTS[s.kind](s, subject) for name, s in made_of.items()}
        for (batch,) in stream(subject.cache, [subject.coder_sites(True)], shards):
            for report in reports.values():
                report.update(batch)
        return reports

    shards = list(subject.shards)
    whole, a, b = fed(shards), fed(shards[3:]), fed(shards[:3])
    for name, report in whole.items():
        a[name].merge(b[name])
        one, two = report.finalise(), a[name].finalise()
        for x, y in zip(one.figures, two.figures, strict=True):
            for one_value, two_value in ((x.value, y.value), (x.with_bos, y.with_bos)):
                assert (one_value is None) == (two_value is None)
                assert one_value is None or one_value == pytest.approx(two_value, rel=1e-9, abs=1e-12)
        for x, y in zip(one.columns, two.columns, strict=True):
            if isinstance(x.values, list):
                assert x.values == y.values
            else:
                np.testing.assert_allclose(x.values, y.values, rtol=1e-6, atol=1e-9)
        assert [one.panel(i) for i in (5, 20)] == [two.panel(i) for i in (5, 20)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_counts_of_activations_do_not_wrap(made: Planted, run: Path) -> None:
    subject = subjects_of(made.cache.path, [("planted", open_run(run))], AnalyzeConfig(controls=False))[0]
    one, other = (REPORTS["top_activations"](TopActivationsConfig(), subject) for _ in range(2))
    one.histogram += 2**31 - 1
    other.histogram += 5
    one.merge(other)
    assert (one.histogram == 2**31 + 4).all()


@pytest.mark.slow
def test_processes_that_share_the_pass_report_the_same(made: Planted, run: Path, tmp_path: Path) -> None:
    """Two processes, each with its own shards: counts, lists and examples to the bit, float sums to 1e-12."""
    runs = [run, nested(made, tmp_path / "runs", "nested")]

    def told(processes: int) -> tuple[dict, Path]:
        config = AnalyzeConfig(out=tmp_path / "reports", name=f"by{processes}", processes=processes)
        folder = analyze(runs, config).report.parent
        return json.loads((folder / "report.json").read_text()), folder

    (alone, by_one), (shared, by_two) = told(1), told(2)
    assert alone.pop("config") != shared.pop("config")
    assert_close(alone, shared)
    for table in ("pairs", "neighbours", "position", "latents"):
        one, two = (pq.read_table(folder / "planted" / f"{table}.parquet").to_pydict() for folder in (by_one, by_two))
        assert_close(one, two)
    one, two = (gzip.decompress((f / "planted" / "latents.jsonl.gz").read_bytes()) for f in (by_one, by_two))
    assert_close([json.loads(line) for line in one.splitlines()], [json.loads(line) for line in two.splitlines()])


def assert_close(one: Any, two: Any) -> None:
    """Equal plain data, floats to 1e-12."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_close(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_close(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-12, abs=1e-12, nan_ok=True)
    else:
        assert one == two


def test_common_words_are_those_of_the_top_contexts(made: Planted, run: Path, tmp_path: Path) -> None:
    folder = analyze([run], AnalyzeConfig(out=tmp_path / "reports", controls=False)).report.parent
    counts: Counter[str] = Counter()
    for line in gzip.decompress((folder / "planted" / "latents.jsonl.gz").read_bytes()).splitlines():
        for block in json.loads(line)["panels"].get("top_activations", ()):
            if block["type"] == "examples":
                texts = " \n ".join(item["text"] for item in block["groups"][0]["items"][:10])
                counts.update(set(re.findall(r"[a-z]+|[^\w\s]+", texts.lower().replace("▁word2", " "))))
    report = json.loads((folder / "report.json").read_text())["runs"][0]["reports"]["top_activations"]
    words = report["data"]["common_words"]
    assert {word["word"]: word["latents"] for word in words} == counts, "marks and short words are words too"
    ranks = [(word["expected"] - word["latents"], word["word"]) for word in words]
    assert ranks == sorted(ranks), "by what chance does not explain; ties by the alphabet, in every process"
    assert {"word", "script", "hacked", "b", "|"} <= counts.keys()


def test_small_pieces_give_the_same_codes(made: Planted, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subjects_of(made.cache.path, [("planted", open_run(run))], AnalyzeConfig(controls=False))[0]
    (whole,) = next(iter(stream(subject.cache, [subject.coder_sites(True)], [0])))
    monkeypatch.setattr(streaming, "ENCODE_BYTES", 1)
    (pieces,) = next(iter(stream(subject.cache, [subject.coder_sites(True)], [0])))
    np.testing.assert_array_equal(whole.codes.indptr, pieces.codes.indptr)
    np.testing.assert_array_equal(whole.codes.latents, pieces.codes.latents)
    np.testing.assert_allclose(whole.codes.values, pieces.codes.values, rtol=1e-6)
    assert whole.codes.l0[~whole.rows.keep].sum() == 0


def test_shards_are_spread_evenly(made: Planted) -> None:
    assert choose_shards(made.cache, None) == tuple(range(8))
    assert choose_shards(made.cache, N_SEQ * CTX) == tuple(range(8))
    assert choose_shards(made.cache, 2 * 1240) == (0, 4)
    assert choose_shards(made.cache, 1) == (0,)


def test_part_of_a_cache(made: Planted, run: Path, tmp_path: Path) -> None:
    result = analyze([run], AnalyzeConfig(out=tmp_path / "reports", max_tokens=2480, controls=False))
    assert result.rows == 2480
    document = json.loads((result.report.parent / "report.json").read_text())
    assert document["runs"][0]["reports"]["correlation"]["data"]["rows_at_position_0"] == 80


def test_a_second_report_replaces_the_first_and_nothing_else(made: Planted, run: Path, tmp_path: Path) -> None:
    config = AnalyzeConfig(
        out=tmp_path / "reports", name="r", controls=False, reports={"global": ReconstructionConfig()}
    )
    first = analyze([run], config).report
    (first.parent / "stray.txt").write_text("kept out of the new one")
    second = analyze([run], config).report
    assert second == first
    assert not (first.parent / "stray.txt").exists()
    assert sorted(p.name for p in first.parent.parent.iterdir()) == ["r"]
    mine = tmp_path / "reports" / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not a report"):
        analyze([run], AnalyzeConfig(out=tmp_path / "reports", name="mine"))
    assert (mine / "thesis.tex").exists()


def test_an_interrupt_does_not_wait_for_the_reports(
    made: Planted, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    # a shell without job control starts background jobs with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def slow(self: ReconstructionReport) -> None:
        time.sleep(0.5)  # a signal in the instant before the main thread begins to wait would be seen only after it
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait(30)

    monkeypatch.setattr(ReconstructionReport, "finalise", slow)
    config = AnalyzeConfig(out=tmp_path / "reports", controls=False, reports={"global": ReconstructionConfig()})
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        analyze([run], config)
    assert time.monotonic() - started < 20
    go_on.set()
    signal.signal(signal.SIGINT, before)
    assert list((tmp_path / "reports").iterdir()) == []


def test_the_folder_is_named_after_what_is_in_it(made: Planted, run: Path, tmp_path: Path) -> None:
    usual = AnalyzeConfig().reports
    named = {
        ("a", "b"): AnalyzeConfig(),
        ("a-only-global",): AnalyzeConfig(reports={"global": ReconstructionConfig()}),
        ("a-only-global-on-letters",): AnalyzeConfig(
            reports={"global": ReconstructionConfig()}, cache=Path("cache/letters")
        ),
        ("a-with-probing",): AnalyzeConfig(reports={**usual, "probing": default_report("probing")}),
        ("mine",): AnalyzeConfig(reports={"global": ReconstructionConfig()}, name="mine"),
    }
    for (expected, *more), config in named.items():
        assert report_folder(config, ["a", *more]) == Path("reports", "+".join((expected, *more)))
    many = [f"a-run-with-a-long-name-{n}" for n in range(12)]
    one, two = (report_folder(AnalyzeConfig(), names).name for names in (many, [*many[:-1], "another"]))
    assert one != two
    assert re.fullmatch(r"12_runs-[0-9a-f]{8}", one)


def test_a_report_with_other_settings_is_not_overwritten(made: Planted, run: Path, tmp_path: Path) -> None:
    few = {"global": ReconstructionConfig()}
    config = AnalyzeConfig(out=tmp_path / "reports", controls=False, reports=few)
    report = analyze([run], config).report
    before = report.read_bytes()
    with pytest.raises(UsageError, match=r"planted-only-global holds a report .*\(analyze.max_tokens\)") as refused:
        analyze([run], replace(config, max_tokens=2480))
    assert "--set analyze.name=planted-only-global to replace" in refused.value.hint
    namesake = made.run(tmp_path / "elsewhere").path
    with pytest.raises(UsageError, match=r"\(the runs\)"):
        analyze([namesake], config)
    assert report.read_bytes() == before
    assert analyze([run], replace(config, device="cpu")).report == report
    assert analyze([run], replace(config, max_tokens=2480, name="planted-only-global")).rows == 2480


def test_refusals(made: Planted, run: Path, tmp_path: Path) -> None:
    config = AnalyzeConfig(out=tmp_path / "reports")
    with pytest.raises(UsageError, match="no run"):
        analyze([], config)
    with pytest.raises(UsageError, match="named twice"):
        analyze([run, run], config)
    with pytest.raises(UsageError, match="baseline is 'planned', but the runs are planted; did you mean 'planted'"):
        analyze([run], AnalyzeConfig(out=tmp_path / "reports", baseline="planned"))
    with pytest.raises(DataError, match="not a run"):
        analyze([tmp_path / "nothing"], config)
    with pytest.raises(DataError, match="no cache"):
        analyze([run], AnalyzeConfig(out=tmp_path / "reports", cache=tmp_path))
    final = run / "final" / "config.json"
    document = json.loads(final.read_text())
    for change, message in (
        ({"cache": {"path": str(tmp_path / "gone"), "identity": "x"}}, "was not found"),
        ({"cache": {"path": str(made.cache.path), "identity": "x" * 64}}, "identity"),
        ({"source": "layer_09.resid_mid"}, "layer_09.resid_mid"),
    ):
        reseal(final, lambda found, change=change: found.update({**document, **change}))
        with pytest.raises(DataError, match=message):
            analyze([run], config)
    narrow = make_cache(tmp_path / "narrow", 4, 8, {SOURCE: 16, TARGET: 16})
    reseal(final, lambda found: found.update(document))
    with pytest.raises(DataError, match="width 64"):
        analyze([run], AnalyzeConfig(out=tmp_path / "reports", cache=narrow.path))
    assert not (tmp_path / "reports").exists()


def test_a_cache_of_ones_own_choice_may_differ(made: Planted, run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    acts = {SOURCE: rng.random((64, 64), np.float32), TARGET: rng.random((64, 512), np.float32)}
    other = make_cache(tmp_path / "other", 8, 8, acts={k: torch.from_numpy(v) for k, v in acts.items()})
    result = analyze([run], AnalyzeConfig(out=tmp_path / "reports", cache=other.path, controls=False))
    assert (result.rows, result.runs[0]["n_pairs_above"]) == (64, 0)


def test_another_cache_is_measured_by_the_training_caches_mean(made: Planted, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    acts = {SOURCE: rng.random((64, 64), np.float32), TARGET: rng.random((64, 512), np.float32) + 3}
    other = make_cache(tmp_path / "other", 8, 8, acts={k: torch.from_numpy(v) for k, v in acts.items()})
    path = nested(made, tmp_path / "runs", "one")
    config = AnalyzeConfig(out=tmp_path / "reports", cache=other.path, reports={"global": ReconstructionConfig()})
    coder = open_run(path).load_coder()
    with torch.no_grad():
        y_hat = coder.decode(coder.encode(torch.from_numpy(acts[SOURCE]))).double().numpy()
    y = acts[TARGET].astype(np.float64)
    rest = (np.arange(64) % 8 > 0) & ((other.flags.reshape(-1) & 4) == 0)
    every = (other.flags.reshape(-1) & 4) == 0

    def fvu(of: Cache, rows: np.ndarray, kind: str) -> float:
        mean = getattr(of.stats(TARGET), kind).mean
        return float(((y - y_hat)[rows] ** 2).sum() / ((y - mean)[rows] ** 2).sum())

    result = analyze([path], config)
    assert result.runs[0]["fvu"] == pytest.approx(fvu(made.cache, rest, "rest"), rel=1e-6)
    assert result.runs[0]["fvu_with_bos"] == pytest.approx(fvu(made.cache, every, "all"), rel=1e-6)
    # A transcoder that never learned gives the training cache's mean, not the other's.
    assert result.controls[0]["fvu"] == pytest.approx(1, rel=1e-3)
    document = json.loads((result.report.parent / "report.json").read_text())
    assert "the training cache." in document["runs"][0]["reports"]["global"]["figures"]["fvu"]["definition"]

    final = path / "final" / "config.json"
    reseal(final, lambda document: document["cache"].update(path=str(tmp_path / "gone")))
    result = analyze([path], config)
    assert result.runs[0]["fvu"] == pytest.approx(fvu(other, rest, "rest"), rel=1e-6)
    document = json.loads((result.report.parent / "report.json").read_text())
    assert "cache under analysis" in document["runs"][0]["reports"]["global"]["figures"]["fvu"]["definition"]


def test_sae_with_one_latent_and_rows_that_never_fire(tmp_path: Path) -> None:
    """The smallest of everything still makes a report."""
    cache = make_cache(tmp_path / "cache", 3, 2, {SOURCE: 4}, vocab=6)
    coder = build_coder(TopKConfig(latents=1, k=1), 4, 4, tied=True)
    with torch.no_grad():
        coder.b_enc.fill_(-1e6)
    run = create_run(tmp_path / "runs", "tiny", {}, {})
    run.finish(
        coder,
        {},
        {"source": SOURCE, "target": SOURCE, "cache": {"path": str(cache.path), "identity": cache.identity}},
    )
    result = analyze([run.path], AnalyzeConfig(out=tmp_path / "reports"))
    assert (result.runs[0]["dead"], result.runs[0]["n_pairs_above"], result.runs[0]["l0"]) == (1, 0, 0)
    assert result.runs[0]["bos_share_top"] is None


def test_settings_round_trip_and_are_checked() -> None:
    config = AnalyzeConfig()
    assert validate(AnalyzeConfig, to_dict(config)) == config
    assert set(config.reports) == {"global", "crosscoder", "correlation", "position", "top_activations"}
    with pytest.raises(ConfigError, match="threshold") as error:
        validate(
            AnalyzeConfig,
            {"reports": {"correlation": {"threshold": 2.0}, "position": {"shifts": 1}}, "device": "gpu"},
            "analyze",
        )
    assert len(error.value.problems) >= 2
    with pytest.raises(ConfigError, match="at least one report"):
        validate(AnalyzeConfig, {"reports": {}})


def test_nothing_of_the_corpus_can_run(made: Planted, run: Path, tmp_path: Path) -> None:
    """The page holds one script element of ours, named by its hash, and no piece of the corpus as markup."""
    report = analyze([run], AnalyzeConfig(out=tmp_path / "reports", controls=False)).report
    page = report.read_text(encoding="utf-8")
    assert "hacked" not in page.split('id="document">')[0]
    executed = re.findall(r"<script(?![^>]*type=)[^>]*>", page)
    assert executed == ["<script>"]
    assert "onerror" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe-inline" not in policy[1]
    assert html._hash(page.rsplit("<script>", 1)[1].split("</script>")[0]) in policy[1]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    document = page.split('id="document">')[1].split("</script>")[0]
    assert json.loads(document)["schema"] == "sparse-coder-analysis"
    assert "\u2028" not in document


def test_markdown_escapes_what_it_quotes() -> None:
    table = {
        "title": "T",
        "caption": "c",
        "columns": [{"label": "x", "format": "text"}],
        "rows": [["</td><script>|`*_\n"]],
        "total": 1,
        "more": "",
    }
    run = {
        "name": "r",
        "role": "run",
        "reports": {"a": {"title": "A", "lead": "<b>", "figures": {}, "charts": [], "tables": [table]}},
    }
    text = to_markdown({"caches": [], "runs": [run], "definitions": []})
    assert r"&lt;/td&gt;&lt;script&gt;\|\`\*\_ ⏎" in text
    assert "<" not in text


@pytest.mark.parametrize(
    ("decoder", "raw", "text"),
    [
        (None, "▁Hello", " Hello"),
        (None, "<0x0A>", "\n"),
        ("ByteLevel", "ĠHello", " Hello"),
        ("ByteLevel", "Ċ", "\n"),
        ("ByteLevel", "Ã©", "é"),
    ],
)
def test_pieces_of_both_families_of_tokenizers(tmp_path: Path, decoder: str | None, raw: str, text: str) -> None:
    from tokenizers import decoders

    tokenizer = Tokenizer(models.WordLevel({raw: 0, "<unk>": 1}, unk_token="<unk>"))
    if decoder:
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = Vocabulary(tmp_path / "tokenizer.json")
    assert vocabulary.piece(0) == text
    assert vocabulary.piece(99) == "<99>"


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read|not a tokenizer"):
        Vocabulary(tmp_path / "tokenizer.json").piece(3)


def test_reports_of_a_subject_are_fed_by_one_read(made: Planted, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_pipeline.shared.cache import Cache

    reads: list[tuple[str, int]] = []
    chunk = Cache.chunk
    monkeypatch.setattr(
        Cache, "chunk", lambda self, site, shard: reads.append((site, shard)) or chunk(self, site, shard)
    )
    subjects = subjects_of(made.cache.path, [("planted", open_run(run))], AnalyzeConfig())
    reads.clear()
    collect(subjects, AnalyzeConfig(), subjects[0].shards)
    assert sorted(reads) == sorted((site, shard) for site in (SOURCE, TARGET) for shard in range(8))
