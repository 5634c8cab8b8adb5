"""The absorption and probing reports from a planted cache, through the same pass and the same command as any report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from sparse_pipeline.analyze.config import AnalyzeConfig, default_report
from sparse_pipeline.analyze.probes.labelled_rows import Sample, labelled, usual_columns
from sparse_pipeline.analyze.probes.labels import token_texts
from sparse_pipeline.analyze.reports import REPORTS, Subject
from sparse_pipeline.analyze.reports.absorption.report import AbsorptionConfig
from sparse_pipeline.analyze.reports.probing.report import ProbingConfig
from sparse_pipeline.analyze.result import ReportResult
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.analyze.stream.batches import stream
from sparse_pipeline.shared.cache import Cache, Flag
from sparse_pipeline.shared.cache.documents import DOCUMENTS
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.runs.folder import create_run
from tests.planted import Hierarchy, absorbing_coder, hierarchy, true_rates
from tests.synthetic import BOS_ID, EOS_ID, PAD_ID, TokenTable, make_cache

SITE = "layer_01.resid_mid"
CTX = 10


def write_tokenizer(path: Path) -> None:
    """Token 3 is a digit (parent 0 of the tree), 4 punctuation (1), 5 capitalised (2), 6 none of them."""
    vocabulary = {"<pad>": PAD_ID, "<eos>": EOS_ID, "<bos>": BOS_ID, "7": 3, "!": 4, "▁Word": 5, "▁word": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>"])
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return hierarchy(n=9000, seed=3)


@pytest.fixture(scope="module")
def cache(tree: Hierarchy, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A row of the tree at every position but the first, its parent spelt out by the token."""
    n_seq = len(tree.x) // (CTX - 1)
    tokens = np.full((n_seq, CTX), BOS_ID, np.int32)
    tokens[:, 1:] = np.where(tree.parent < 0, 6, 3 + tree.parent).reshape(n_seq, CTX - 1)
    flags = np.zeros((n_seq, CTX), np.uint8)
    flags[:, 0] = int(Flag.BOS)
    doc_id = np.repeat(np.arange(n_seq, dtype=np.uint32)[:, None], CTX, axis=1)
    position = np.tile(np.arange(CTX, dtype=np.uint16), (n_seq, 1))
    acts = torch.zeros(n_seq, CTX, tree.x.shape[1])
    acts[:, 1:] = tree.x.reshape(n_seq, CTX - 1, -1)
    acts[:, 0] = 50.0
    path = tmp_path_factory.mktemp("planted") / "cache"
    made = make_cache(
        path, n_seq, CTX, acts={SITE: acts.reshape(n_seq * CTX, -1)}, shard_rows=2000,
        table=TokenTable(tokens, doc_id, position, flags),
    )  # fmt: skip
    write_tokenizer(path / "tokenizer.json")
    return made


def subject(cache: Cache, coder: Coder) -> Subject:
    return Subject("planted", "run", coder, cache, SITE, SITE, Vocabulary.of(cache), tuple(cache.shards))


def report(kind: str, config: Any, cache: Cache, coder: Coder, halves: bool = False) -> ReportResult:
    """The report, from one pass; with `halves`, from two collectors that are merged."""
    of = subject(cache, coder)
    middle = len(of.shards) // 2
    parts = []
    for shards in (of.shards[middle:], of.shards[:middle]) if halves else (of.shards,):
        collector = REPORTS[kind](config, of)
        for batches in stream(cache, [of.coder_sites(collector.reconstructs)], shards):
            collector.update(batches[0])
        parts.append(collector)
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0].finalise()


TOKEN_LABELS = ("digit", "punctuation", "capitalised")


def test_the_report_finds_the_planted_rate(cache: Cache, tree: Hierarchy) -> None:
    config = AbsorptionConfig(families=TOKEN_LABELS, rows=9000, splits=2)
    result = report("absorption", config, cache, absorbing_coder(tree, 0.25))
    truth = true_rates(tree, 0.25, np.arange(len(tree.x)))
    for p, name in enumerate(TOKEN_LABELS):
        value = result.figure(f"absorption_{name}").value
        assert value == pytest.approx(truth[p], abs=0.03)
    families, labels = result.tables
    assert [row[1] for row in families.rows] == ["evaluable"] * 3
    place = [column.label for column in labels.columns].index("main latents")
    assert {row[0]: row[place] for row in labels.rows} == {name: [p] for p, name in enumerate(TOKEN_LABELS)}
    main_of, absorbs = result.columns
    assert [main_of.values[p] for p in range(3)] == list(TOKEN_LABELS)
    absorbers = np.flatnonzero(np.asarray(absorbs.values))
    assert ((absorbers - 3) % 40 < 10).all()
    json.dumps(result.to_dict(), allow_nan=False)


def test_merging_is_as_good_as_one_pass(cache: Cache, tree: Hierarchy) -> None:
    coder = absorbing_coder(tree, 0.5)
    absorption = AbsorptionConfig(families=("digit",), rows=3000, splits=1)
    probing = ProbingConfig(families=("digit",), rows=3000)
    for kind, config in (("absorption", absorption), ("probing", probing)):
        whole, merged = (report(kind, config, cache, coder, halves).to_dict() for halves in (False, True))
        assert whole == merged


def test_an_untrained_coder_never_scores_zero(cache: Cache, tree: Hierarchy) -> None:
    """Either it is not evaluable, or its value comes with an interval whose upper end is not 0."""
    width = tree.x.shape[1]
    coder = build_coder(
        TopKConfig(latents=64, k=4), width, width, tied=True, generator=torch.Generator().manual_seed(0)
    ).eval()
    result = report("absorption", AbsorptionConfig(families=TOKEN_LABELS, rows=6000, splits=1), cache, coder)
    for family in result.data["families"]:
        assert (family["status"] == "not evaluable" and family["full"] is None) or family["full"]["high"] > 0
    assert "digit" in result.lead


def test_probing_beside_its_controls(cache: Cache, tree: Hierarchy) -> None:
    config = ProbingConfig(families=(*TOKEN_LABELS, "position"), rows=9000)
    result = report("probing", config, cache, absorbing_coder(tree, 0.0))
    by_family = result.data["family_auc"]
    for name in TOKEN_LABELS:
        assert by_family[name]["1"] > 0.99
        assert by_family[name]["dense"] > 0.99
    assert by_family["position"]["5"] == pytest.approx(0.5, abs=0.05)  # the planted rows know nothing of it
    assert result.figure("probing_auc_1").null == 0.5
    width = tree.x.shape[1]
    untrained = build_coder(
        TopKConfig(latents=64, k=4), width, width, tied=True, generator=torch.Generator().manual_seed(0)
    ).eval()
    control = report("probing", config, cache, untrained)
    assert control.data["family_auc"]["digit"]["1"] < 0.9
    assert control.data["family_auc"]["digit"]["dense"] == by_family["digit"]["dense"]
    json.dumps(result.to_dict(), allow_nan=False)


def test_domains_come_from_the_cache(cache: Cache, tree: Hierarchy) -> None:
    sample = Sample(1000, None, 1, 50, 0)
    assert "domain" not in labelled(cache, SITE, sample).labels.families
    with pytest.raises(UsageError, match="has no labels 'domain'"):
        labelled(cache, SITE, Sample(1000, ("domain",), 1, 50, 0))
    lines = [json.dumps({"doc_id": d, "domain": "even" if d % 2 == 0 else "odd"}) for d in range(cache.n_seq)]
    (cache.path / DOCUMENTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        found = labelled(cache, SITE, Sample(1001, ("domain",), 1, 50, 0))
        assert found.labels.names == ("domain:even", "domain:odd")
        even = cache.doc_id.reshape(-1)[found.rows] % 2 == 0
        assert np.array_equal(found.labels.values[:, 0] == 1, even)
    finally:
        (cache.path / DOCUMENTS).unlink()


def test_prompts_are_measured_at_their_own_rows(cache: Cache, tree: Hierarchy) -> None:
    """A cache of prompts: one row each, the labels its columns, and prompts of one word on one side of a split."""
    targets = [s * CTX + 1 + s % (CTX - 1) for s in range(cache.n_seq)]
    lines = [
        json.dumps(
            {"doc_id": s, "labels": {"colour": "red" if s % 3 else "blue", "word": f"w{s // 4}"}, "target_row": row}
        )
        for s, row in enumerate(targets)
    ]
    (cache.path / DOCUMENTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        found = labelled(cache, SITE, Sample(5000, None, 2, 50, 1))
        assert found.rows.tolist() == targets
        assert found.labels.names == ("colour:blue", "colour:red")
        assert torch.equal(found.x, cache.rows(SITE, targets).float())
        for split, _ in found.splits:
            words = [set((part // 4).tolist()) for part in (split.train, split.validation, split.test)]
            assert sum(map(len, words)) == 250
        config = AbsorptionConfig(families=("punctuation",), rows=9000, splits=1, min_true_positives=1)
        result = report("absorption", config, cache, absorbing_coder(tree, 0.25))
        assert result.data["rows"] == cache.n_seq
    finally:
        (cache.path / DOCUMENTS).unlink()


def test_usual_columns_are_categories() -> None:
    columns: dict[str, dict[int, object]] = {
        "flag": {0: True, 1: False, 2: None},
        "kind": {0: "a", 1: "b"},
        "constant": {0: "a", 1: "a"},
        "length": {0: 3, 1: 4},
        "name": {i: f"n{i}" for i in range(65)},
    }
    assert usual_columns(columns) == ["flag", "kind"]


def test_rare_labels_are_left_out(cache: Cache) -> None:
    with pytest.raises(UsageError, match="none of the 1 labels has 5000 positive"):
        labelled(cache, SITE, Sample(1000, ("digit",), 1, 5000, 0))
    found = labelled(cache, SITE, Sample(1000, ("digit", "first_letter"), 1, 50, 0))
    assert found.labels.names == ("digit",)
    assert len(found.left_out) == 26  # every word begins with a w


def test_made_when_named(tree: Hierarchy) -> None:
    assert not {"absorption", "probing"} & set(AnalyzeConfig().reports)
    assert default_report("absorption") == AbsorptionConfig()


def test_the_terminal_says_what_was_asked_for(cache: Cache, tree: Hierarchy, tmp_path: Path) -> None:
    """Reports without a column in the table of headlines say their sentence; an empty before/after is left out."""
    runs = []
    for name, rate in (("few", 0.25), ("many", 0.5)):
        run = create_run(tmp_path / "runs", name, {}, {})
        run.finish(
            absorbing_coder(tree, rate),
            {},
            {"source": SITE, "target": SITE, "cache": {"path": str(cache.path), "identity": cache.identity}},
        )
        runs.append(run.path)
    config = AnalyzeConfig(
        out=tmp_path / "reports",
        controls=False,
        reports={
            "absorption": AbsorptionConfig(families=("digit",), rows=3000, splits=1),
            "probing": ProbingConfig(families=("digit",), rows=3000),
        },
    )
    result = analyze(runs, config)
    document = json.loads((result.report.parent / "report.json").read_text())
    leads = [f"{run['name']}: {report['lead']}" for run in document["runs"] for report in run["reports"].values()]
    lines = str(result).splitlines()
    assert lines[:-1] == leads
    assert lines[0].startswith("few: Full absorption on 3,000 rows: digit ")
    assert lines[1].startswith("few: One probe of k latents per label, 1 labels, 3,000 rows: mean AUC ")
    assert [table["key"] for table in document["comparison"]["tables"]] == ["similarity"]


def test_texts_of_the_planted_tokenizer(cache: Cache) -> None:
    assert token_texts(cache) == ["", "", "", "7", "!", " Word", " word"]
