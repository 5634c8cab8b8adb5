"""Documents in a cache: sequences of their own, attention that stays within them, prompts, and what is said of them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from sparse_pipeline.harvest.check import checked_against_source
from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.data.reading import Reading
from sparse_pipeline.harvest.dataset import open_dataset
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.models.bodies import body_of
from sparse_pipeline.models.capture import SiteReader, check_isolated
from sparse_pipeline.models.families import FAMILIES
from sparse_pipeline.models.site_names import format_site
from sparse_pipeline.models.sites import resolve_sites
from sparse_pipeline.shared.cache import Cache, open_cache, verify_cache
from sparse_pipeline.shared.cache.documents import DocumentRecord, read_documents
from sparse_pipeline.shared.cache.repair import repair_cache
from sparse_pipeline.shared.errors import DataError, UsageError
from tests.harvest.conftest import CTX, make_texts
from tests.harvest.test_capture import LAYERS, random_model
from tests.harvest.test_run import config_for, contents
from tests.sealed import reseal

SITES = ("layer_01.resid_mid", "layer_01.mlp_out")


def plain_model(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The model as `transformers` loads it, and a dict that a forward pass fills with the two sites."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    seen: dict[str, Tensor] = {}
    block = model.model.layers[1]
    block.pre_feedforward_layernorm.register_forward_pre_hook(lambda _m, args: seen.update({SITES[0]: args[0]}))
    block.post_feedforward_layernorm.register_forward_hook(lambda _m, _a, out: seen.update({SITES[1]: out}))
    return model, seen


def assert_rows_are_of_documents_alone(cache: Cache, path: Path) -> int:
    """Every stretch of one document within a sequence equals that stretch run by itself; returns their number."""
    model, seen = plain_model(path)
    stretches = 0
    for s in range(cache.n_seq):
        kind = np.where(cache.flags[s] == 4, -1, cache.doc_id[s].astype(np.int64))
        edges = [0, *(np.flatnonzero(np.diff(kind)) + 1).tolist(), cache.ctx]
        for start, stop in itertools.pairwise(edges):
            if kind[start] < 0:
                continue
            assert cache.flags[s, start] == 1, "a stretch begins with BOS"
            with torch.no_grad():
                model(input_ids=torch.from_numpy(cache.tokens[s, start:stop].astype(np.int64))[None])
            for site in SITES:
                found = cache.rows(site, np.arange(s * cache.ctx + start, s * cache.ctx + stop)).float()
                torch.testing.assert_close(found, seen[site][0], rtol=2**-7, atol=1e-3)
            stretches += 1
    return stretches


def test_attention_stays_within_documents(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    config = config_for(tiny_model, texts_file, tmp_path, ctx=32, shard_rows=256, tokens=24 * 32)
    apart = dataclasses.replace(config, cross_document_attention=False)
    cache = open_cache(harvest(apart).path)
    assert assert_rows_are_of_documents_alone(cache, tiny_model) > cache.n_seq + 5
    bos = np.flatnonzero(cache.flags.reshape(-1) & 1)
    assert len(bos) > cache.n_seq + 5
    for site in SITES:
        rows = cache.rows(site, bos).double().numpy()
        assert cache.stats(site).first.n == len(bos)
        np.testing.assert_allclose(cache.stats(site).first.sum, rows.sum(0), rtol=1e-5, atol=1e-4)
    with pytest.raises(AssertionError):  # it is not so where documents are joined
        assert_rows_are_of_documents_alone(open_cache(harvest(config).path), tiny_model)


def test_a_sequence_for_each_document(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    config = config_for(tiny_model, texts_file, tmp_path, packing="document", tokens=40 * CTX)
    result = harvest(config)
    cache = open_cache(result.path)
    assert assert_rows_are_of_documents_alone(cache, tiny_model) == 40
    padding = (cache.flags & 4) != 0
    assert 0 < padding.sum() == cache.n_rows - result.n_tokens
    stats = cache.stats(SITES[0])
    rows = cache.rows(SITES[0], np.flatnonzero(~padding.reshape(-1))).double()
    assert stats.first.n + stats.rest.n == result.n_tokens
    np.testing.assert_allclose(stats.all.sum, rows.sum(0).numpy(), rtol=1e-6, atol=1e-4)


KEEPS_APART = {
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "olmo2",
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_family_keeps_documents_apart_or_says_that_it_cannot(family: str, attention: str) -> None:
    model = random_model(family)
    try:
        model.set_attn_implementation(attention)  # type: ignore[operator]
    except ValueError:
        pytest.skip("transformers has no such path")
    kinds = FAMILIES[family].kinds_of(model.config)
    names = tuple(format_site(LAYERS - 1, kind) for kind in kinds)
    ids = (torch.arange(24) * 7 + 5) % 90
    ids[0] = ids[12] = 2
    positions = torch.arange(12).repeat(2)[None]
    together: dict[str, Tensor] = {}
    alone: dict[str, Tensor] = {}
    with SiteReader(model, body_of(model), resolve_sites(names, model)) as reader:
        try:
            check_isolated(reader, 2, 96, 24, torch.device("cpu"))
        except UsageError:
            assert family not in KEEPS_APART
            return
        reader.read(ids[None], None, lambda n, v: together.__setitem__(n, v.clone()), positions)
        reader.read(ids[None, 12:], None, lambda n, v: alone.__setitem__(n, v.clone()))
        for name in names:
            torch.testing.assert_close(together[name][:, 12:], alone[name], rtol=1e-4, atol=1e-4)


def test_a_model_that_cannot_keep_documents_apart_is_refused() -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=96,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        initializer_range=0.5,
        attn_implementation="eager",
    )
    model = BertModel(config).eval()
    sites = resolve_sites(("encoder.layer.1.output:out",), model)
    with SiteReader(model, model, sites) as reader, pytest.raises(UsageError, match="cannot keep documents apart"):
        check_isolated(reader, 2, 96, 24, torch.device("cpu"))


def test_documents_are_named(tiny_model: Path, tmp_path: Path) -> None:
    """Every document with a row in the cache, with its domain and labels, and no other; the same after a resume."""
    file = tmp_path / "t.jsonl"
    texts = make_texts(60)
    lines = [{"text": t, "kind": "ab"[i % 2], "score": i, "ok": i % 3 == 0} for i, t in enumerate(texts)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes: dict[str, Any] = {"domain_column": "kind", "label_columns": ("score", "ok"), "tokens": 24 * CTX}
    config = config_for(tiny_model, file, tmp_path / "cache", **changes)
    path = harvest(config).path
    cache = open_cache(path)
    found = list(read_documents(path))
    assert [record.doc_id for record in found] == np.unique(cache.doc_id[cache.flags != 4]).tolist()
    for record in found:
        line = lines[record.doc_id]
        assert record == DocumentRecord(
            record.doc_id,
            f"{file}:{record.doc_id + 1}",
            line["kind"],
            {"score": line["score"], "ok": line["ok"]},
        )
    summary = cache.manifest["extra"]["documents"]
    data = (path / "documents.jsonl").read_bytes()
    assert summary == {
        "file": "documents.jsonl",
        "documents": len(found),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    before = contents(path)
    (path / "manifest.json").unlink()
    (path / "documents.jsonl").unlink()  # killed between the last commit and this file
    assert harvest(config).shards_written == 0
    assert contents(path) == before
    (path / "documents.jsonl").write_text('{"doc_id": 0}\n{"source": "x"}\n')
    with pytest.raises(DataError, match=r"documents\.jsonl is damaged"):
        list(read_documents(path))
    reseal(path / "manifest.json", lambda manifest: manifest["extra"].pop("documents"))
    with pytest.raises(DataError, match=r"documents\.jsonl:2 is not a document"):
        list(read_documents(path))


def test_the_demo_corpus_has_domains(tiny_model: Path, tmp_path: Path) -> None:
    path = harvest(config_for(tiny_model, tmp_path, tmp_path, dataset="demo", tokens=8 * CTX)).path
    records = list(read_documents(path))
    assert records
    assert all(record.domain and record.source.startswith(("doc:", "help:")) for record in records)


PROMPTS: list[dict[str, Any]] = [
    {"text": "the list of values", "labels": {"letter": "v", "hard": True}},
    {"text": "a function returns None", "target": 1, "labels": {"letter": "f"}},
    {"text": "while error", "target_char": 3},
    {"text": "import class 42", "target": -2, "labels": None},
]


@pytest.mark.parametrize("name", ["documents.jsonl", "tokenizer/tokenizer.json"])
def test_verify_finds_a_flipped_bit_beside_the_arrays(
    tiny_model: Path, texts_file: Path, tmp_path: Path, name: str
) -> None:
    """Neither file has a commit; the manifest holds its sha256. The hint repairs both."""
    config = config_for(tiny_model, texts_file, tmp_path)
    path = harvest(config).path
    file = path / name
    whole = file.read_bytes()
    extra = open_cache(path).manifest["extra"]
    said = {"documents.jsonl": extra["documents"]["sha256"], extra["tokenizer"]: extra["tokenizer_sha256"]}
    assert said[name] == hashlib.sha256(whole).hexdigest()
    assert verify_cache(path).ok
    at = len(whole) // 2
    for damaged in (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole[:-1], None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        report = verify_cache(path)
        assert [problem.path for problem in report.problems] == [file]
        assert report.problems[0].expected.endswith(said[name])
        assert report.hint == f"pipeline verify {path} --repair"
        assert repair_cache(path).again[0] == file.name
        assert harvest(config).shards_written == 0
        assert verify_cache(path).ok
        assert file.read_bytes() == whole


def test_what_is_whole_but_not_of_the_source_is_found_and_repaired(
    tiny_model: Path, texts_file: Path, tmp_path: Path
) -> None:
    """Sound by every checksum: rows of another text, another tokenizer, other documents."""
    config = config_for(tiny_model, texts_file, tmp_path / "a")
    path = harvest(config).path
    whole = contents(path)
    assert checked_against_source(verify_cache(path)).ok
    lines = [json.loads(line) for line in texts_file.read_text(encoding="utf-8").splitlines()]
    other_texts = tmp_path / "other.jsonl"
    other_texts.write_text("".join(json.dumps({**one, "text": one["text"][::-1]}) + "\n" for one in lines))
    other = harvest(config_for(tiny_model, other_texts, tmp_path / "b")).path
    identity = open_cache(path).identity
    for file in other.glob("acts.zarr/*/c.2*"):
        (path / file.relative_to(other)).write_bytes(file.read_bytes())
    (path / "commits/000002.json").write_bytes((other / "commits/000002.json").read_bytes())
    reseal(path / "commits/000002.json", lambda commit: commit.update(identity=identity))
    (path / "manifest.json").unlink()
    assert verify_cache(path).ok
    (problem,) = checked_against_source(verify_cache(path)).problems
    assert problem.found == "tokens of other text"
    with pytest.raises(DataError, match="has changed: shard 2"):
        harvest(config)
    assert repair_cache(path, further=checked_against_source).again == ("1 shard",)
    harvest(config)
    (path / "tokenizer/tokenizer.json").write_text("{}")
    reseal(path / "manifest.json", lambda m: m["extra"].update(tokenizer_sha256=hashlib.sha256(b"{}").hexdigest()))
    assert verify_cache(path).ok
    (problem,) = checked_against_source(verify_cache(path)).problems
    assert problem.found == "another tokenizer"
    repair_cache(path, further=checked_against_source)
    (path / "manifest.json").unlink()  # its sha256 was of the other tokenizer
    harvest(config)
    assert contents(path) == whole
    texts_file_gone = checked_against_source(verify_cache(other))
    assert (texts_file_gone.ok, texts_file_gone.notes) == (True, ())
    other_texts.unlink()
    (note,) = checked_against_source(verify_cache(other)).notes
    assert "is not on this machine" in note


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_prompts(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    file = tmp_path / f"p.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    else:
        rows = [{"target": None, "target_char": None, "labels": None} | prompt for prompt in PROMPTS]
        pq.write_table(pa.Table.from_pylist(rows), file)
    changes = {"packing": "prompts", "tokens": None, "separator": "none"}
    cache = open_cache(harvest(config_for(tiny_model, file, tmp_path / "cache", **changes)).path)
    assert cache.n_seq == len(PROMPTS)
    assert assert_rows_are_of_documents_alone(cache, tiny_model) == len(PROMPTS)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for number, (prompt, record) in enumerate(zip(PROMPTS, read_documents(cache.path), strict=True)):
        encoded = tokenizer(prompt["text"], add_special_tokens=False, return_offsets_mapping=True)
        n = len(encoded["input_ids"])
        if "target_char" in prompt:
            at = next(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a <= prompt["target_char"] < b)
        else:
            at = range(n)[prompt.get("target", -1)]
        assert record.target_row == number * CTX + 1 + at
        assert cache.tokens.reshape(-1)[record.target_row] == encoded["input_ids"][at]
        labels = {name: value for name, value in record.labels.items() if value is not None}
        assert labels == (prompt.get("labels") or {})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"text": ""}, "expected at least one token in a prompt"),
        ({"text": "a list", "target": 40}, "target 40, but the text has"),
        ({"text": "a list", "target": "last"}, "'target' is str, expected a whole number"),
        ({"text": "a list", "target_char": 6}, "target_char 6, but the text has 6 characters"),
        ({"text": "a list", "target": 0, "target_char": 0}, "both 'target' and 'target_char'"),
        ({"text": "a list", "labels": ["x"]}, "'labels' is list, expected name → value"),
        ({"text": "a list", "labels": {"x": [1]}}, "label 'x' is list"),
        ({"text": "error " * 40}, "a prompt must fit into one sequence of 16"),
    ],
)
def test_bad_prompts_say_what_and_where(tiny_model: Path, tmp_path: Path, prompt: dict[str, Any], message: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(PROMPTS[0]) + "\n" + json.dumps(prompt) + "\n")
    with pytest.raises(UsageError, match=message) as caught:
        harvest(config_for(tiny_model, file, tmp_path / "cache", packing="prompts", tokens=None))
    assert "p.jsonl:2" in caught.value.message


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "a", "kind": "b"}\n')
    with pytest.raises(UsageError, match=r"harvest\.domain_column: .* no column 'kin'; did you mean 'kind'"):
        list(open_dataset(HarvestConfig(dataset=str(file), domain_column="kin")).documents(Reading()))
    with pytest.raises(UsageError, match=r"harvest\.label_columns: .* no column 'x'"):
        list(open_dataset(HarvestConfig(dataset=str(file), label_columns=("kind", "x"))).documents(Reading()))
