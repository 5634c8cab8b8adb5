"""Documents shuffled in a buffer, and cut or split; a cache is recognised where its model and dataset have moved."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sparse_pipeline.harvest.config import HarvestConfig, cache_path
from sparse_pipeline.harvest.data.choose import limited, shuffled
from sparse_pipeline.harvest.data.pack import TokenDocument
from sparse_pipeline.harvest.data.reading import Reading
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.harvest.prepare import prepare
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.shared.cache import open_cache
from sparse_pipeline.shared.errors import DataError
from sparse_pipeline.shared.overview.describe import describe, describe_text
from tests.harvest.conftest import CTX, make_texts
from tests.harvest.test_run import config_for, contents


def test_a_shuffle_is_a_permutation_within_its_buffer() -> None:
    assert list(shuffled(range(50), 0, 3)) == list(range(50))
    for buffer in (2, 7, 64):
        order = list(shuffled(range(50), buffer, 3))
        assert sorted(order) == list(range(50)) != order
        assert all(item < place + buffer for place, item in enumerate(order))
        assert order == list(shuffled(range(50), buffer, 3)) != list(shuffled(range(50), buffer, 4))
    places = np.array([list(shuffled(range(8), 8, seed)).index(0) for seed in range(4000)])
    np.testing.assert_allclose(np.bincount(places, minlength=8) / 4000, 1 / 8, atol=0.02)


def test_long_documents_are_cut_or_split() -> None:
    tokens = [np.arange(n, dtype=np.int32) for n in (3, 10, 4)]
    documents = [TokenDocument(i, one, f"d{i}", flags=one.astype(np.uint8)) for i, one in enumerate(tokens)]
    cut, split = (list(limited(documents, 4, parts)) for parts in (False, True))
    assert [(one.index, one.tokens.tolist(), one.close) for one in cut] == [
        (0, [0, 1, 2], True),
        (1, [0, 1, 2, 3], False),
        (2, [0, 1, 2, 3], True),
    ]
    assert [(one.index, one.source, len(one.tokens), one.close) for one in split] == [
        (0, "d0", 3, True),
        (1, "d1 part 1", 4, False),
        (2, "d1 part 2", 4, False),
        (3, "d1 part 3", 2, True),
        (4, "d2", 4, True),
    ]
    assert [one.flags.tolist() for one in split if one.flags is not None] == [one.tokens.tolist() for one in split]
    assert list(limited(documents, None, True)) == documents


def test_the_settings_of_choice(tiny_model: Path, tmp_path: Path) -> None:
    """The shuffled harvest holds the same documents; each is its own text; an interrupted one resumes to the same."""
    texts = make_texts(150)
    file = tmp_path / "t.jsonl"
    file.write_text(
        "".join(json.dumps({"text": text, "kind": "ab"[i % 3 == 0]}) + "\n" for i, text in enumerate(texts))
    )
    plain = config_for(tiny_model, file, tmp_path / "cache", domain_column="kind")
    config = dataclasses.replace(plain, shuffle_documents=20, max_document_tokens=24, long_documents="split")
    assert cache_path(config) != cache_path(plain)
    own = list(prepare(plain).tokenised(Reading()))
    parts = list(prepare(config).tokenised(Reading()))
    assert max(len(one.tokens) for one in parts) == 24
    of_source: dict[str, list[int]] = {}
    for one in parts:
        of_source.setdefault(one.source.partition(" part ")[0], []).extend(one.tokens.tolist())
    assert of_source == {one.source: one.tokens.tolist() for one in own}
    assert list(of_source) != [one.source for one in own]
    path = harvest(config).path
    before = contents(path)
    (path / "manifest.json").unlink()
    (path / "commits" / "000003.json").unlink()
    assert harvest(config).shards_written == 1
    assert contents(path) == before
    found = describe(path)["documents"]
    assert sum(found["domains"].values()) == found["count"] > 20
    assert list(found["domains"]) == ["a", "b"]
    assert f"documents: a {found['domains']['a']}, b {found['domains']['b']}" in describe_text(describe(path))
    for changes in (
        {"max_document_tokens": 0},
        {"max_document_tokens": 9, "packing": "prompts"},
        {"shuffle_documents": -1},
    ):
        with pytest.raises(ValueError, match="expected at least"):
            HarvestConfig(**changes)  # type: ignore[arg-type]


def test_a_cache_is_recognised_where_its_inputs_have_moved(tiny_model: Path, tmp_path: Path) -> None:
    """By name and without one; another dataset or model at the new place is another cache."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(200)))
    shutil.copytree(tiny_model, old / "model")
    config = config_for(old / "model", old / "texts.jsonl", tmp_path / "cache", tokens=16 * CTX)
    path = harvest(config).path
    named = harvest(dataclasses.replace(config, name="mine", cache_dir=tmp_path / "named")).path
    before = contents(path), contents(named)
    old.rename(new)
    moved = dataclasses.replace(config, model=str(new / "model"), dataset=str(new / "texts.jsonl"))
    assert cache_path(moved) != path
    assert plan(moved).path == path
    result = harvest(moved)
    assert (result.path, result.shards_written) == (path, 0)
    assert harvest(dataclasses.replace(moved, cache_dir=tmp_path / "named", name="mine")).shards_written == 0
    assert (contents(path), contents(named)) == before
    grown = harvest(dataclasses.replace(moved, cache_dir=tmp_path / "named", name="mine", tokens=24 * CTX))
    assert grown.shards_written == 1
    assert open_cache(named).n_seq == 24
    (new / "texts.jsonl").write_text('{"text": "another text of a few words"}\n' * 200)
    assert plan(moved).path == cache_path(moved)
    with pytest.raises(DataError, match=r"resolved\.dataset"):
        harvest(dataclasses.replace(moved, cache_dir=tmp_path / "named", name="mine"))


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_an_only_file_may_be_renamed(suffix: str, tiny_model: Path, tmp_path: Path) -> None:
    """Its name decides nothing; one of several files, and another kind of the same bytes, are another dataset."""
    text = "".join(json.dumps({"text": text}) + "\n" for text in make_texts(200))
    (tmp_path / f"old{suffix}").write_text(text)
    config = config_for(tiny_model, tmp_path / f"old{suffix}", tmp_path / "cache", tokens=16 * CTX)
    path = harvest(config).path
    (tmp_path / f"old{suffix}").rename(tmp_path / f"new{suffix}")
    renamed = dataclasses.replace(config, dataset=str(tmp_path / f"new{suffix}"))
    result = harvest(renamed)
    assert (result.path, result.shards_written) == (path, 0)
    (tmp_path / f"new{suffix}").rename(tmp_path / "new.ndjson")
    assert plan(dataclasses.replace(config, dataset=str(tmp_path / "new.ndjson"))).path != path
