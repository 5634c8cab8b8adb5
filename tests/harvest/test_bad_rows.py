"""Encodings, and rows that cannot be used: named or counted; a harvest that one of them ended goes on."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_pipeline.harvest.config import HarvestConfig, cache_path
from sparse_pipeline.harvest.data.reading import BadRowError, Reading
from sparse_pipeline.harvest.dataset import open_dataset
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.shared.cache import open_cache, verify_cache
from sparse_pipeline.shared.cache.documents import read_documents
from sparse_pipeline.shared.errors import DataError, UsageError
from tests.harvest.conftest import CTX, make_texts
from tests.harvest.test_files import tar_of, zstd
from tests.harvest.test_run import config_for, contents

TEXTS = ["naïve café", "漢字かな", "plain"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be-marked"])
@pytest.mark.parametrize("kind", ["jsonl", "txt", "csv"])
def test_marked_encodings_and_both_line_ends(tmp_path: Path, encoding: str, kind: str) -> None:
    written = {
        "jsonl": "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in TEXTS),
        "txt": "\r\n".join(TEXTS),
        "csv": "text\r\n" + "".join(text + "\r\n" for text in TEXTS),
    }[kind]
    marked = encoding == "utf-16-be-marked"
    data = codecs.BOM_UTF16_BE + written.encode("utf-16-be") if marked else written.encode(encoding)
    (tmp_path / f"a.{kind}").write_bytes(data)
    found = open_dataset(HarvestConfig(dataset=str(tmp_path / f"a.{kind}"))).documents(Reading())
    assert [document.text for document in found] == (["\n".join(TEXTS)] if kind == "txt" else TEXTS)


GOOD = b'{"text": "fine", "n": 1}\n'


def parquet_of(path: Path, values: Any) -> Path:
    pq.write_table(pa.table({"text": values}), path / "a.parquet")
    return path / "a.parquet"


def written(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def torn(name: str, data: bytes) -> Callable[[Path], Path]:
    return written(name, data[: len(data) * 2 // 3])


MANY = b"".join(b'{"text": "line %d is fine"}\n' % i for i in range(9000))

BAD = [
    (written("a.jsonl", GOOD + b'{"text": null}\n' + GOOD), "a.jsonl:2: column 'text' is null", 2),
    (written("a.jsonl", GOOD + b'{"texts": "x"}\n' + GOOD), "a.jsonl:2 has no column 'text'; did you mean 'texts'", 2),
    (written("a.jsonl", GOOD + b'{"text": ["x"]}\n'), "a.jsonl:2: column 'text' is list, expected text", 1),
    (written("a.jsonl", GOOD + b'{"text": "\\ud83d"}\n' + GOOD), "a.jsonl:2: column 'text' holds a lone surrogate", 2),
    (written("a.jsonl", GOOD + b'{"text": "caf\xe9"}\n' + GOOD), "a.jsonl:2 is not text: 'utf-8' codec", 2),
    (written("a.jsonl", GOOD + b'{"text": "x\n' + GOOD), "a.jsonl:2 is not valid JSON: .* column 12", 2),
    (written("a.jsonl", ('{"text": "a"}\n{"text": "b"}\n').encode("utf-16-le")), "a.jsonl:1 is not text: .* UTF-16", 0),
    (written("a.jsonl", ('{"text": "a"}\n' * 2).encode("utf-16") + b"x"), "a.jsonl:3 is not text: 'utf-16", 2),
    (written("a.csv", b"text,n\nfine,1\nshort\nfine,2\n"), "a.csv:3 has 1 fields, expected 2", 2),
    (written("a.csv", b'text,n\nfine,1\n"open,2\n'), "a.csv:3 is not valid CSV", 1),
    (written("a.csv", b"text,n\nfine,1\ncaf\xe9,2\nfine,3\n"), "a.csv:3 is not text", 2),
    (written("a.json", b'[{"text": "fine"}, {"text": 3}, {"text": "fine"}]'), "a.json:1: column 'text' is int", 2),
    (written("a.json", b'[{"text": "fine"},\n {"text": "fi'), "a.json:2 is not valid JSON from here on", 1),
    (torn("a.jsonl.gz", gzip.compress(MANY)), r"a.jsonl.gz:\d+: the file is truncated or corrupt from here on", None),
    (torn("a.jsonl.zst", zstd(MANY)), r"a.jsonl.zst:\d+: the file is truncated or corrupt from here on", None),
    (torn("a.txt.gz", gzip.compress(MANY)), r"a.txt.gz:\d+: the file is truncated or corrupt", 0),
    (
        written("a.gz.jsonl.gz", MANY),
        "a.gz.jsonl.gz:1: the file is truncated or corrupt from here on: Not a gzipped",
        0,
    ),
    (written("a.tar", tar_of({"a.txt": b"fine", "b.txt": b"caf\xe9\n"})), "a.tar/b.txt:1 is not text", 1),
    (torn("a.tar", tar_of({"a.txt": b"fine", "b.txt": b"x" * 90_000})), "a.tar.* truncated or corrupt", 1),
    (written("a.txt", b"first\nsecond \xff\n"), "a.txt:2 is not text", 0),
    (written("a.txt", codecs.BOM_UTF16_LE + b"a\0\0\xd8b\0"), "a.txt.* holds a lone surrogate", 0),
    (lambda path: parquet_of(path, ["fine", None, "fine"]), "a.parquet row 1: column 'text' is null", 2),
    (lambda path: parquet_of(path, [b"bytes", b"more"]), "a.parquet row 0: column 'text' is bytes", 0),
    (lambda path: parquet_of(path, [[1], [2], [3]]), "a.parquet row 0: column 'text' is list", 0),
]


@pytest.mark.parametrize(("make", "message", "good"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_named_or_skipped(
    tmp_path: Path, make: Callable[[Path], Path], message: str, good: int | None
) -> None:
    source = open_dataset(HarvestConfig(dataset=str(make(tmp_path))))
    with pytest.raises(BadRowError, match=message) as caught:
        list(source.documents(Reading()))
    assert "--set harvest.on_bad_row=skip" in str(caught.value.hint)
    reading = Reading("skip")
    found = list(source.documents(reading))
    assert reading.skipped
    assert len(found) == good or (good is None and 0 < len(found) < 9000)
    total = sum(reading.skipped.values())
    assert reading.notes()[0].startswith(f"skipped {total:,} bad rows: ")


def rows_with(bad: int | None, n: int = 200) -> str:
    lines = [json.dumps({"text": text}) for text in make_texts(n)]
    if bad is not None:
        lines.insert(bad, '{"text": 17}')
    return "".join(line + "\n" for line in lines)


@pytest.fixture(scope="module")
def stopped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> HarvestConfig:
    """A harvest that its 701st row ended, with some shards committed. Copy the cache, and write the dataset."""
    folder = tmp_path_factory.mktemp("stopped")
    file = folder / "texts.jsonl"
    file.write_text(rows_with(700, 1100))
    changes: dict[str, Any] = {"tokens": 1600 * CTX, "shard_rows": 128 * CTX, "batch_tokens": 128 * CTX}
    config = config_for(tiny_model, file, folder / "cache", **changes)
    with pytest.raises(UsageError, match=rf"{file}:701: column 'text' is int, expected text"):
        harvest(config)
    assert 1 < len(list((cache_path(config) / "commits").glob("*.json"))) < 12
    return config


def again(stopped: HarvestConfig, folder: Path, texts: str) -> tuple[HarvestConfig, int]:
    """The stopped harvest in another folder, with these rows in its dataset; and the shards still to write."""
    shutil.copytree(stopped.cache_dir, folder / "cache")
    Path(stopped.dataset_name).write_text(texts)
    config = dataclasses.replace(stopped, cache_dir=folder / "cache")
    return config, 13 - len(list((cache_path(config) / "commits").glob("*.json")))


def test_a_skipped_row_loses_no_committed_shard(
    stopped: HarvestConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, left = again(stopped, tmp_path, rows_with(700, 1100))
    with pytest.raises(BadRowError):
        harvest(config)
    assert f"stopped: {13 - left} of 13 shards are in {cache_path(config)}" in capsys.readouterr().err
    result = harvest(dataclasses.replace(config, on_bad_row="skip"))
    assert (result.path, result.shards_written) == (cache_path(config), left)
    assert "skipped 1 bad rows: 1 × 'text' is int (first: " in capsys.readouterr().err
    assert open_cache(result.path).manifest["extra"]["skipped_rows"] == {"'text' is int": 1}
    assert verify_cache(result.path).ok
    skipped = contents(result.path)
    (result.path / "manifest.json").unlink()
    assert harvest(dataclasses.replace(config, on_bad_row="skip")).shards_written == 0
    assert contents(result.path) == skipped


def test_a_repaired_row_loses_no_committed_shard(stopped: HarvestConfig, tmp_path: Path) -> None:
    """What follows is bit-identical to a harvest of the repaired dataset."""
    config, left = again(stopped, tmp_path, rows_with(None, 1100))
    result = harvest(config)
    assert result.shards_written == left
    other = open_cache(harvest(dataclasses.replace(config, cache_dir=tmp_path / "fresh")).path)
    cache = open_cache(result.path)
    assert "skipped_rows" not in cache.manifest["extra"]
    for name in ("tokens", "doc_id", "pos_in_doc", "flags"):
        np.testing.assert_array_equal(getattr(cache, name), getattr(other, name))
    assert list(read_documents(cache.path)) == list(read_documents(other.path))
    for site in config.sites:
        assert (cache.rows(site, range(cache.n_rows)) == other.rows(site, range(cache.n_rows))).all()
    assert harvest(config).shards_written == 0  # the repaired dataset is known to be the one of the cache
    Path(config.dataset_name).write_text(rows_with(None, 1100).replace("function", "procedure"))
    with pytest.raises(DataError, match=r"resolved\.dataset"):
        harvest(config)


def test_another_dataset_does_not_continue_a_cache(stopped: HarvestConfig, tmp_path: Path) -> None:
    """Neither with other tokens, nor with the same tokens in other documents."""
    config, _ = again(stopped, tmp_path, '{"text": ""}\n' + rows_with(None, 1100))
    with pytest.raises(DataError, match=r"shard 0 of .* holds other documents \(doc_id differ\)"):
        harvest(config)
    Path(config.dataset_name).write_text(rows_with(None, 1100).replace("function", "procedure"))
    with pytest.raises(DataError, match=r"has changed: shard 0 of .* holds other tokens"):
        harvest(config)


def test_a_dataset_of_bad_rows_only_says_what_they_are(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"body": "x"}\n')
    config = config_for(tiny_model, tmp_path / "a.jsonl", tmp_path / "cache", on_bad_row="skip")
    with pytest.raises(UsageError, match=r"holds no text .*; skipped 2 bad rows: 1 × 'text' is null \(first: .*:1\)"):
        harvest(config)
