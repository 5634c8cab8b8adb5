"""Which files a dataset consists of, in which order, and which are passed over; every kind of file gives its texts."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.data.files import find
from sparse_pipeline.harvest.data.reading import Reading
from sparse_pipeline.harvest.dataset import open_dataset
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import UsageError
from tests.harvest.test_run import config_for

TEXTS = ["plain", "two\nlines, and a comma", "größer, 漢字 🤖", 'quotes " and ; and |']
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def texts_of(dataset: str | Path | tuple[str, ...], **settings: Any) -> list[str]:
    given = dataset if isinstance(dataset, tuple) else str(dataset)
    source = open_dataset(HarvestConfig(dataset=given, **settings))
    return [document.text for document in source.documents(Reading())]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return bytes(sink.getvalue().to_pybytes())


def csv_text(delimiter: str) -> str:
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    return "".join(f"{delimiter.join(cells)}\r\n" for cells in [("n", "text"), *zip("0123", quoted, strict=True)])


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


MEMBERS = {f"texts/{i}.txt": text.encode() for i, text in enumerate(TEXTS)}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.zst", zstd(JSONL)),
        ("a.jsonl.bz2", bz2.compress(JSONL)),
        ("a.jsonl.xz", lzma.compress(JSONL)),
        ("a.jsonl.gz", gzip.compress(JSONL) + gzip.compress(b"")),
        ("a.json", json.dumps([{"text": text} for text in TEXTS]).encode()),
        ("a.json", json.dumps([{"text": text, "x": {"y": [1]}} for text in TEXTS], indent=2).encode("utf-16")),
        ("lines.json", JSONL),
        ("a.csv", csv_text(",").encode("utf-8-sig")),
        ("semicolons.csv", csv_text(";").encode()),
        ("a.tsv", csv_text("\t").encode("utf-16")),
        ("a.csv.gz", gzip.compress(csv_text("|").encode())),
        ("a.tar", tar_of(MEMBERS)),
        ("a.tar.zst", zstd(tar_of(MEMBERS | {"texts/._0.txt": b"\0\1", "logo.png": b"\x89PNG"}))),
        ("a.tgz", tar_of(MEMBERS, "w:gz")),
    ],
)
def test_every_kind_of_file(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert texts_of(tmp_path / name) == TEXTS
    assert texts_of(tmp_path) == TEXTS


def test_a_long_json_array_is_read_in_windows(tmp_path: Path) -> None:
    """Elements cut at the edge of a window, strings longer than one, and places counted in lines."""
    rows: list[Any] = [{"text": "a]}" * n} for n in (400_000, 3, 200_000, 1_100_000)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1) + "\n\n")
    assert texts_of(tmp_path / "a.json") == [row["text"] for row in rows]
    (tmp_path / "a.json").write_text(json.dumps([*rows, 7], indent=1).replace("7\n]", "7\n,{]"))
    reading = Reading("skip")
    found = list(open_dataset(HarvestConfig(dataset=str(tmp_path / "a.json"))).documents(reading))
    assert len(found) == len(rows)
    assert dict(reading.skipped) == {"not an object": 1, "invalid JSON": 1}
    assert reading.examples["not an object"] == f"{tmp_path}/a.json:14"
    assert reading.examples["invalid JSON"] == f"{tmp_path}/a.json:15"


def test_a_long_text_file_is_not_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_pipeline.harvest.data import texts

    monkeypatch.setattr(texts, "MOST_HELD", 100)
    whole = "".join(f"line {i} é\r\n" for i in range(200_000))
    (tmp_path / "long.txt").write_bytes(whole.encode())
    (tmp_path / "long.tar").write_bytes(tar_of({"first.txt": b"short", "long.md": whole.encode()}))
    for name in ("long.txt", "long.tar"):
        *_, document = open_dataset(HarvestConfig(dataset=str(tmp_path / name))).documents(Reading())
        assert document.text == ""
        assert document.parts is not None
        for _ in range(2):
            parts = list(document.parts())
            assert max(map(len, parts)) <= 1 << 20 < len(whole)
            assert "".join(parts) == whole.replace("\r\n", "\n")


def test_documents_beside_tables_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    for name in ("README.md", "LICENSE.txt", "sub/notes.rst", ".hidden.jsonl", "dataset_infos.json", "about.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{\n "text": "not data"}')
    assert texts_of(tmp_path) == TEXTS
    source = open_dataset(HarvestConfig(dataset=str(tmp_path)))
    assert {path.name: reason for path, reason in source.skipped} == {
        "README.md": "a document beside tables",
        "LICENSE.txt": "a document beside tables",
        "notes.rst": "a document beside tables",
        ".hidden.jsonl": "hidden",
        "dataset_infos.json": "describes data or a model",
        "about.json": "neither an array nor one object a line",
    }


@pytest.mark.parametrize("second", ["a.jsonl", "a.csv.gz", "a.json"])
def test_one_table_in_two_formats_is_refused(tmp_path: Path, second: str) -> None:
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    data = csv_text(",").encode() if "csv" in second else json.dumps([{"text": "a"}]).encode()
    (tmp_path / second).write_bytes(gzip.compress(data) if second.endswith("gz") else data)
    with pytest.raises(UsageError, match="look like one table in two formats") as caught:
        texts_of(tmp_path)
    assert caught.value.hint is not None
    pattern = caught.value.hint.partition("harvest.dataset=")[2].rstrip("'")
    assert [file.path.parent for file in find(pattern, "train").files] == [tmp_path]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl"),
        ("my_training_set.jsonl", "my_dev_set.jsonl"),
        ("train/part1.jsonl", "eval/part1.jsonl"),
        ("wiki.train.txt", "wiki.valid.txt"),
    ],
)
def test_splits_of_a_folder(tmp_path: Path, train: str, test: str) -> None:
    for name, text in ((train, "a"), (test, "b")):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text if name.endswith("txt") else json.dumps({"text": text}))
    assert texts_of(tmp_path) == ["a"]
    other = next(name for name in ("test", "validation") if _has(tmp_path, name))
    assert texts_of(tmp_path, dataset_split=other) == ["b"]
    assert texts_of(str(tmp_path / "**" / "*.*")) == sorted(["a", "b"], key=lambda t: train if t == "a" else test)
    missing = "validation" if other == "test" else "test"
    with pytest.raises(UsageError, match=f"no files of a split '{missing}'") as caught:
        texts_of(tmp_path, dataset_split=missing)
    assert f"its splits: train, {other}" in str(caught.value.hint)
    source = open_dataset(HarvestConfig(dataset=str(tmp_path)))
    assert source.skipped == ((tmp_path / test, f"split {other}"),)


def _has(folder: Path, split: str) -> bool:
    try:
        return bool(texts_of(folder, dataset_split=split))
    except UsageError:
        return False


def test_files_of_a_split_beside_others_are_refused(tmp_path: Path) -> None:
    for name in ("books.jsonl", "test.jsonl"):
        (tmp_path / name).write_bytes(JSONL)
    with pytest.raises(UsageError, match=r"test\.jsonl looks like a part of the split 'test', but .*books\.jsonl"):
        texts_of(tmp_path)
    assert texts_of(tmp_path, dataset_split="test") == TEXTS
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UsageError, match="no files of a split 'test'"):
        texts_of(tmp_path, dataset_split="test")
    # notes are documents, whatever they are about
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("testing.md", "style.md"):
        (notes / name).write_text(name)
    assert texts_of(notes) == ["style.md", "testing.md"]


def test_links_to_folders_are_followed_and_circles_refused(tmp_path: Path) -> None:
    for name in ("real", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "real" / "b.jsonl").write_bytes(JSONL)
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "first"}')
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "data" / "twice").symlink_to(tmp_path / "real", target_is_directory=True)
    assert texts_of(tmp_path / "data") == ["first", *TEXTS]
    assert [reason for _, reason in open_dataset(HarvestConfig(dataset=str(tmp_path / "data"))).skipped] == [
        f"the same file as {tmp_path}/data/linked/b.jsonl"
    ]
    (tmp_path / "real" / "back").symlink_to(tmp_path / "data", target_is_directory=True)
    with pytest.raises(UsageError, match="which it lies in"):
        texts_of(tmp_path / "data")
    (tmp_path / "real" / "back").unlink()
    (tmp_path / "data" / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(UsageError, match=r"gone\.jsonl is a link to .*nowhere\.jsonl, which was not found"):
        texts_of(tmp_path / "data")


def test_a_saved_dataset_is_read_by_its_state_file(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(saved)
    # a cache that `map` leaves in the folder
    datasets.load_from_disk(saved).map(lambda row: {"text": row["text"] * 2}, load_from_cache_file=False)
    assert list(saved.glob("cache-*.arrow"))
    before = open_dataset(HarvestConfig(dataset=str(saved))).identity
    assert texts_of(saved) == texts_of(tmp_path) == TEXTS
    for cache in saved.glob("cache-*.arrow"):
        cache.unlink()
    assert open_dataset(HarvestConfig(dataset=str(saved))).identity == before
    (saved / "data-00000-of-00001.arrow").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(UsageError, match=r"lists data-00000-of-00001\.arrow, which was not found"):
        texts_of(saved)


def test_several_patterns_in_their_order(tmp_path: Path) -> None:
    for name in ("b1.jsonl", "b2.jsonl", "a.txt"):
        (tmp_path / name).write_text(name if name.endswith("txt") else json.dumps({"text": name}))
    given = (f"{tmp_path}/b*.jsonl", f"{tmp_path}/a.txt", f"{tmp_path}/*2.jsonl")
    assert texts_of(given) == ["b1.jsonl", "b2.jsonl", "a.txt"]
    assert open_dataset(HarvestConfig(dataset=given)).skipped[0][0] == tmp_path / "b2.jsonl"
    assert HarvestConfig(dataset=("demo",)) == HarvestConfig() == validate(HarvestConfig, {"dataset": "demo"})
    assert validate(HarvestConfig, {"dataset": list(given)}).dataset == given
    with pytest.raises(UsageError, match=r"not found: .*c\*\.jsonl"):
        texts_of((given[0], f"{tmp_path}/c*.jsonl"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt", "a.arrow", "a.tar", "a.jsonl.zst"])
def test_a_pointer_in_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UsageError, match=f"{name} is a Git LFS pointer") as caught:
        texts_of(tmp_path / name)
    assert caught.value.hint == f"git -C {tmp_path} lfs pull"


def test_the_plan_lists_the_files(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "b.jsonl").write_bytes(JSONL * 3)
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "train" / "a.parquet")
    (tmp_path / "test.jsonl").write_bytes(JSONL)
    (tmp_path / "README.md").write_text("about")
    planned = plan(config_for(tiny_model, tmp_path, tmp_path / "cache"))
    assert [line.strip() for line in str(planned).splitlines() if str(tmp_path) in line][1:] == [
        f"{tmp_path}/train/a.parquet  4 rows",
        f"{tmp_path}/train/b.jsonl  12 rows",
        f"not read: {tmp_path}/README.md (a document beside tables)",
        f"not read: {tmp_path}/test.jsonl (split test)",
    ]
    document = planned.to_dict()
    assert [(one["path"], one["rows"]) for one in document["files"]] == [
        (f"{tmp_path}/train/a.parquet", 4),
        (f"{tmp_path}/train/b.jsonl", 12),
    ]
    assert [one["reason"] for one in document["files_not_read"]] == ["a document beside tables", "split test"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: (p / "a.tar").write_bytes(tar_of({"a.jsonl": JSONL})),
            r"a\.tar holds no text file .*, only a\.jsonl",
        ),
        (lambda p: (p / "a.xyz").write_bytes(b"x"), "no data files found"),
        (lambda p: (p / "README").mkdir(), "no data files found"),
        (lambda p: (p / "a.csv").write_bytes(b"id,body\n1,x\n"), r"no column 'text'"),
    ],
)
def test_folders_without_text_say_so(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        texts_of(tmp_path)
    assert caught.value.hint
