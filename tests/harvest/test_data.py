"""Sources of text: local files of every kind, a hub dataset (by its local twin), tokenising ahead."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.data import hub, local
from sparse_pipeline.harvest.data.documents import Columns, Document
from sparse_pipeline.harvest.data.encode import Encoder
from sparse_pipeline.harvest.data.files import DataFile
from sparse_pipeline.harvest.data.reading import Reading
from sparse_pipeline.harvest.data.tokenise import Ahead, tokenise
from sparse_pipeline.harvest.dataset import Dataset, open_dataset
from sparse_pipeline.shared.errors import UsageError

TEXTS = ["first text\nof two lines", "", "zweiter Text: größer, 漢字", "third"]


def texts(dataset: Dataset, reading: Reading | None = None) -> list[str]:
    return [document.text for document in dataset.documents(reading or Reading())]


def write_jsonl(path: Path) -> None:
    path.write_text(
        "\n".join(json.dumps({"text": t, "n": i}, ensure_ascii=False) for i, t in enumerate(TEXTS)) + "\n\n"
    )


def write_jsonl_gz(path: Path) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(json.dumps({"text": t}) for t in TEXTS))


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"n": list(range(4)), "text": TEXTS}), path, row_group_size=2)


def write_arrow_stream(path: Path) -> None:
    table = pa.table({"text": TEXTS, "n": list(range(4))})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_arrow_file(path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_jsonl),
        ("a.ndjson", write_jsonl),
        ("a.jsonl.gz", write_jsonl_gz),
        ("a.parquet", write_parquet),
        ("a.arrow", write_arrow_stream),
        ("b.arrow", write_arrow_file),
    ],
)
def test_every_kind_of_table(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    for dataset in (tmp_path, tmp_path / name):
        source = open_dataset(HarvestConfig(dataset=str(dataset)))
        assert texts(source) == TEXTS
        assert texts(source) == TEXTS, "a source can be read again"


def test_text_files_are_one_document_each_in_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b.txt").write_text("b\r\nsecond line")
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "sub" / "c.rst").write_text("c")
    (tmp_path / "z.png").write_text("not read")
    (tmp_path / ".hidden" / "h.txt").write_text("not read")
    source = open_dataset(HarvestConfig(dataset=str(tmp_path)))
    assert texts(source) == ["a", "b\nsecond line", "c"]


def test_what_datasets_saves(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    both = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict({"text": TEXTS}),
            "test": datasets.Dataset.from_dict({"text": ["held out"]}),
        }
    )
    both.save_to_disk(tmp_path / "saved")
    config = HarvestConfig(dataset=str(tmp_path / "saved"))
    assert texts(open_dataset(config)) == TEXTS
    other = HarvestConfig(dataset=str(tmp_path / "saved"), dataset_split="test")
    assert texts(open_dataset(other)) == ["held out"]
    with pytest.raises(UsageError, match="no split 'tset'; did you mean 'test'"):
        open_dataset(HarvestConfig(dataset=str(tmp_path / "saved"), dataset_split="tset"))


def test_hub_dataset_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` reads a local folder and a hub repository by the same code; only the commit needs the hub."""
    write_parquet(tmp_path / "train.parquet")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "unused"))
    source = hub.HubSource(str(tmp_path))
    assert [document.text for document in hub.documents(source, None, Columns("text"), Reading())] == TEXTS
    with pytest.raises(UsageError, match="no column 'txt'; did you mean 'text'"):
        list(hub.documents(source, None, Columns("txt"), Reading()))
    with pytest.raises(UsageError, match="cannot open"):
        list(hub.documents(hub.HubSource(str(tmp_path), split="nope"), None, Columns("text"), Reading()))


def test_hub_needs_a_commit_and_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"cannot open 'some/dataset'"):  # the tests run offline
        open_dataset(HarvestConfig(dataset="some/dataset"))
    monkeypatch.setattr(hub, "resolve_revision", lambda name, revision: "c0ffee" if revision == "v1" else "deadbeef")
    source = open_dataset(HarvestConfig(dataset="some/dataset", dataset_revision="v1"))
    assert (source.identity, source.bytes) == ("c0ffee", None)
    with pytest.raises(UsageError, match="needs a number"):
        open_dataset(HarvestConfig(dataset="some/dataset", tokens=None))


def test_what_is_neither_a_file_nor_on_the_hub_says_both(monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(Exception):
        """As HTTP libraries have: no OSError."""

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectError("[Errno 111] Connection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    says = "cannot open 'notes': no such local file, and the hub cannot be reached: .* Connection refused"
    with pytest.raises(UsageError, match=says):
        open_dataset(HarvestConfig(dataset="notes"))
    for name in ("missing.jsonl", "texts/missing.txt.gz", "missing.parquet"):
        with pytest.raises(UsageError, match=f"harvest.dataset: not found: {name}"):
            open_dataset(HarvestConfig(dataset=name))


def broken_json(path: Path) -> Path:
    file = path / "x.jsonl"
    file.write_text('{"text": "fine"}\n{"text": \n')
    return file


LATIN_LINES = b'{"text": "fine"}\n' * 5000 + b'{"text": "caf\xe9"}\n'


def latin_lines(path: Path) -> Path:
    file = path / "x.jsonl"
    file.write_bytes(LATIN_LINES)
    return file


def latin_lines_zipped(path: Path) -> Path:
    file = path / "x.jsonl.gz"
    file.write_bytes(gzip.compress(LATIN_LINES))
    return file


def list_line(path: Path) -> Path:
    file = path / "x.jsonl"
    file.write_text('["text"]\n')
    return file


def null_text(path: Path) -> Path:
    file = path / "x.jsonl"
    file.write_text('{"text": null}\n')
    return file


def not_parquet(path: Path) -> Path:
    file = path / "x.parquet"
    file.write_text("not parquet at all")
    return file


def not_utf8(path: Path) -> Path:
    file = path / "x.txt"
    file.write_bytes(b"\xff\xfe\xfa")
    return file


def no_column(path: Path) -> Path:
    pq.write_table(pa.table({"texts": ["a"]}), path / "x.parquet")
    return path / "x.parquet"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken_json, r"x\.jsonl:2 is not valid JSON"),
        (list_line, r"x\.jsonl:1 is list, expected an object"),
        (null_text, r"x\.jsonl:1: column 'text' is null, expected text"),
        (not_parquet, r"x\.parquet row 0: the file is truncated or corrupt"),
        (not_utf8, r"x\.txt:1 is not text: .*truncated data"),
        (latin_lines, r"x\.jsonl:5001 is not text: 'utf-8' codec can't decode byte 0xe9"),
        (latin_lines_zipped, r"x\.jsonl\.gz:5001 is not text: 'utf-8' codec can't decode byte 0xe9"),
        (no_column, r"no column 'text'; did you mean 'texts'"),
        (lambda path: path / "missing.jsonl", "not found"),
        (lambda path: path, "no data files"),
    ],
)
def test_bad_datasets_say_what_and_where(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    dataset = make(tmp_path)
    with pytest.raises(UsageError, match=message):
        texts(open_dataset(HarvestConfig(dataset=str(dataset))))


def test_a_changed_file_is_another_dataset(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x" * 3_000_000)
    one = [DataFile(file, "a.txt")]
    before = local.fingerprint(one)
    assert local.fingerprint(one) == before
    file.write_text("x" * 2_999_999 + "y")
    assert local.fingerprint(one) != before


def test_tokenise_numbers_documents_and_keeps_special_tokens_in_text_as_text() -> None:
    from transformers import AutoTokenizer

    from sparse_pipeline.models.folder import DEMO_MODEL

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    texts = ["one", "", "a <eos> b"] + ["x " * 100_000] * 3 + ["last"]
    given = (Document(text, str(i)) for i, text in enumerate(texts))
    found = list(tokenise(given, Encoder(tokenizer), Reading()))
    assert [document.index for document in found] == list(range(len(texts)))
    assert not len(found[1].tokens)
    assert 1 not in found[2].tokens
    for document, text in zip(found, texts, strict=True):
        assert document.tokens.dtype == np.int32
        assert tokenizer.decode(document.tokens) == text


def test_ahead_keeps_order_and_its_distance() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    with Ahead(items(), depth=3) as ahead:
        iterator = iter(ahead)
        assert next(iterator) == 0
        time.sleep(0.3)
        assert len(made) <= 1 + 3 + 1  # taken, waiting, and one held while the queue is full
        assert list(iterator) == list(range(1, 50))


def test_ahead_raises_where_the_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise UsageError("broken")

    with Ahead(items(), depth=3) as ahead:
        iterator = iter(ahead)
        assert next(iterator) == 1
        with pytest.raises(UsageError, match="broken"):
            next(iterator)


def test_ahead_ends_its_thread_when_left_early() -> None:
    def items() -> Iterator[Any]:
        while True:
            yield 0

    with Ahead(items(), depth=2) as ahead:
        next(iter(ahead))
    assert not any(thread.name == "tokenise" for thread in threading.enumerate())
