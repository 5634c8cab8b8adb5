"""Files that claim, or become, more than a program can hold are refused by name, before memory or time is spent."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sparse_pipeline.harvest.data.decode import lines
from sparse_pipeline.harvest.data.reading import BadRowError
from sparse_pipeline.shared.archives import load_plain
from sparse_pipeline.shared.cache.files import read_json
from sparse_pipeline.shared.coders import load_coder, save_coder
from sparse_pipeline.shared.coders.registry import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.columnar import arrow_batches, open_parquet, plain_rows, read_parquet
from sparse_pipeline.shared.errors import DataError
from sparse_pipeline.shared.untrusted import ROW_CHARS, Expanding, most_expanded, parse_json, read_object
from tests.faults.bombs import BOMBS, LARGE
from tests.sealed import reseal

READ = {"shared.parquet", "shared.arrow"}
"""What is read, within the same bounds."""


def test_what_claims_or_becomes_too_much_is_refused_by_name(tmp_path: Path, root: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.faults.bombs", str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    print("bombs:", json.dumps({name: rest for name, (_, *rest) in found.items()}))
    assert found.keys() == BOMBS.keys()
    for name, (message, seconds, mebibytes) in found.items():
        assert (message == f"read: {LARGE}") if name in READ else (str(tmp_path / name) in message), (name, message)
        assert not message.startswith("it crashed")
        assert seconds < 20, (name, seconds)
        assert mebibytes < 1024, (name, mebibytes)


def test_an_expansion_stops_at_the_bound(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"ab")
    with io.BufferedReader(Expanding(io.BytesIO(bytes(most_expanded(2))), file)) as raw:
        assert len(raw.read()) == most_expanded(2) == (64 << 20) + 200
    with (
        io.BufferedReader(Expanding(io.BytesIO(bytes(most_expanded(2) + 1)), file)) as raw,
        pytest.raises(DataError, match="expands to more than 67,109,064 bytes"),
    ):
        raw.read()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_row_beyond_the_bound_costs_only_itself(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(("a\n" + "b" * ROW_CHARS + "\n" + "c\n").encode(encoding))
    found = list(lines(file))
    assert [number for number, _ in found] == [1, 2, 3]
    assert (found[0][1], found[2][1]) == ("a\n", "c\n")
    assert isinstance(found[1][1], BadRowError)
    assert found[1][1].reason == "longer than 16,777,216 characters"


def test_documents_of_json_have_bounds(tmp_path: Path) -> None:
    for data in (b"[" * 100_000, b"1" * 5000, b"\xff", b"", b'{"a": 1', b"NaN}"):
        with pytest.raises(ValueError):
            parse_json(data)
    file = tmp_path / "x.json"
    with pytest.raises(DataError, match=r"x\.json cannot be read: No such file"):
        read_object(file)
    file.write_text("[1]")
    with pytest.raises(DataError, match="holds list, expected an object"):
        read_object(file)
    os.truncate(file, 1 << 40)  # a hole: it takes no place on the disk
    for read in (read_object, read_json):
        with pytest.raises(DataError, match=r"x\.json.* 1,099,511,627,776 bytes"):
            read(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="not a regular file"):
        read_object(file)


def test_tables_are_read_as_pyarrow_reads_them(tmp_path: Path) -> None:
    numbers = list(range(3000))
    table = pa.table(
        {
            "text": [f"é {n} " * (n % 7) for n in numbers],
            "ids": [numbers[: n % 5] for n in numbers],
            "label": pa.array([None if n % 3 else "x" for n in numbers]).dictionary_encode(),
        }
    )
    expected = table.to_pylist()
    for number, codec in enumerate(("none", "snappy", "gzip", "zstd", "lz4", "brotli")):
        file = tmp_path / f"{codec}.parquet"
        version = "2.0" if number % 2 else "1.0"
        pq.write_table(table, file, compression=codec, data_page_version=version, row_group_size=700)
        opened, rows = open_parquet(file)
        with opened:
            assert [row for batch in opened.iter_batches(rows) for row in plain_rows(batch)] == expected
        assert read_parquet(file).to_pylist() == expected
    for codec in (None, "zstd", "lz4"):
        for make in (pa.ipc.new_stream, pa.ipc.new_file):
            file = tmp_path / "x.arrow"
            with make(file, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as sink:
                sink.write_table(table, max_chunksize=700)
            assert [row for batch in arrow_batches(file) for row in plain_rows(batch)] == expected


def test_state_dicts_are_read_and_their_strides_checked(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(3)[1:]}
    torch.save(state, file)
    found = load_plain(file)
    assert all(torch.equal(found[name], value) for name, value in state.items())
    torch.save({"a": torch.zeros(1).expand(1000)}, file)
    with pytest.raises(DataError, match="more elements than the file stores"):
        load_plain(file)
    torch.save(state, file, _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match="cannot be read as tensors alone: File is not a zip file"):
        load_plain(file)


def test_a_coder_is_not_built_larger_than_its_file(tmp_path: Path) -> None:
    coder = build_coder(TopKConfig(latents=16, k=2), 8, 8, tied=True)
    save_coder(coder, tmp_path / "c")
    assert load_coder(tmp_path / "c").d_in == 8
    reseal(tmp_path / "c/config.json", lambda d: (d["coder"].update(latents=1 << 24), d.update(d_in=1 << 20)))
    with pytest.raises(DataError, match="cannot be the 16,777,216 latents"):
        load_coder(tmp_path / "c")
    save_coder(coder, tmp_path / "c")
    os.truncate(tmp_path / "c/coder.safetensors", 1 << 40)
    with pytest.raises(DataError, match="1,099,511,627,776 bytes"):
        load_coder(tmp_path / "c")


def test_a_mapped_file_that_is_cut_ends_the_process_with_its_name(tmp_path: Path) -> None:
    script = """
import mmap, os, sys
import numpy as np
from sparse_pipeline.shared.mapped import name_failed_mappings
name_failed_mappings(["analyze", "a b"])
with open(sys.argv[1], "rb") as file:
    rows = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.float32)
os.truncate(sys.argv[1], 4096)
print(rows.sum())
"""
    cache = tmp_path / "c"
    (cache / "acts.zarr").mkdir(parents=True)
    cases = {
        cache / "acts.zarr/chunk": f"pipeline verify {cache} --repair",
        tmp_path / "x": "pipeline analyze 'a b'",
    }
    for file, command in cases.items():
        file.write_bytes(bytes(1 << 16))
        ran = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True)
        assert (ran.returncode, ran.stdout) == (3, "")
        assert ran.stderr == (
            f"error: {file}: the disk failed, or the file was cut, while it was read\n"
            f"next: check the disk (dmesg), then {command}\n"
        )


def test_a_page_that_lies_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a" * 1000]}), file, compression="zstd", use_dictionary=False)
    data = bytearray(file.read_bytes())
    data[4] = 0xFF  # the first page's header
    file.write_bytes(data)
    with pytest.raises(DataError, match="no page at byte 4"):
        open_parquet(file)
    struct.pack_into("<I", data, len(data) - 8, 1 << 30)  # the length of the footer
    file.write_bytes(data)
    with pytest.raises(pa.ArrowException):
        open_parquet(file)
