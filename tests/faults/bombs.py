"""Small files that claim, or become, far more than a program can hold; each is read as a command would read it.

Run as a program it prints a JSON object: name → [what was said, seconds, peak of memory in MiB]. At length, each file
is made, and read, in a process of its own, forked from one that has imported what they need.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import multiprocessing
import os
import re
import struct
import sys
import tarfile
import time
import traceback
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file

from sparse_pipeline.exchange.load import load_coders
from sparse_pipeline.harvest.data.documents import Columns
from sparse_pipeline.harvest.data.files import find
from sparse_pipeline.harvest.data.local import documents
from sparse_pipeline.harvest.data.reading import Reading
from sparse_pipeline.models.files import refuse_damaged
from sparse_pipeline.models.weights import gguf_facts
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.errors import PipelineError
from sparse_pipeline.transfer.opening import open_foreign

MIB = 1 << 20
LONG = os.environ.get("PIPELINE_FAULTS") == "long"
LARGE = 1024 if LONG else 80
"""What becomes of a bomb, in MiB."""

PART = b"no " * (MIB // 3)

Action = Callable[[Path], object]


def read_all(path: Path) -> int:
    """Reads every document of a dataset, as a harvest does; how many."""
    found = find(str(path), "train")
    return sum(1 for _ in documents(found.files, Columns("text"), Reading("error")))


def check_weights(folder: Path) -> None:
    """Looks at a model's folder, as every command that loads a model does."""
    refuse_damaged(folder, "harvest.model")


def holding(data: bytes) -> Action:
    """Writes a file."""
    return lambda path: path.write_bytes(data)


def streams(compress: Callable[[bytes], bytes]) -> Action:
    """Writes much text in many small streams, one after the other."""
    return lambda path: path.write_bytes(compress(PART) * LARGE)


def tgz(path: Path) -> None:
    member = tarfile.TarInfo("a.txt")
    member.size = 1 << 30
    path.write_bytes(gzip.compress(member.tobuf()) + gzip.compress(PART) * LARGE)


def page(path: Path) -> None:
    """One page that expands to very much."""
    table = pa.table({"text": ["a" * (LARGE * MIB)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)


def buffer(path: Path) -> None:
    feather.write_feather(pa.table({"text": ["a" * (LARGE * MIB)]}), path, compression="zstd")


def nulls(path: Path) -> None:
    """Rows that cost nothing to claim."""
    batch = pa.record_batch([pa.Array.from_buffers(pa.null(), 1 << 40, [None])], names=["text"])
    with pa.ipc.new_stream(path, batch.schema, options=pa.ipc.IpcWriteOptions(allow_64bit=True)) as stream:
        stream.write_batch(batch)


def shared_value(path: Path) -> None:
    """Many rows that have one long value."""
    values = pa.DictionaryArray.from_arrays(np.zeros(LARGE, np.int32), ["a" * MIB])
    table = pa.table({"text": values})
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=4 * MIB)
        return
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)


def npz(path: Path) -> None:
    """A member that expands to very much."""
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("W_enc.npy", "w", force_zip64=True) as member:
        member.write(npy_header((LARGE << 18,)))
        for _ in range(LARGE):
            member.write(bytes(MIB))


def npz_claim(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W_enc.npy", npy_header((1 << 40,)))


def strides(path: Path) -> None:
    """A state dict of 2^36 elements that are one number."""
    path.mkdir()
    torch.save({"W_enc": torch.zeros(1).expand(1 << 36)}, path / "ae.pt")


def weights(header: bytes) -> Action:
    """A model's folder with a file of weights that has this header."""

    def make(path: Path) -> None:
        path.mkdir()
        (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

    return make


def nothing(path: Path) -> None:
    """No rows of a tebibyte each."""
    save_file({"a": np.zeros((0, 1 << 40), np.float32)}, path)


def tar_header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("a.txt")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def sparse(path: Path) -> None:
    """A member of old GNU tar that is text and then a hole of a tebibyte."""
    data = bytearray(tar_header(tarfile.GNUTYPE_SPARSE, len(PART)))
    data[386:410] = b"%011o\0%011o\0" % (0, len(PART))
    data[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    path.write_bytes(bytes(data) + PART + bytes(1024))


def npy_header(shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return head.getvalue()


ENDLESS_ARRAY = struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 0, 1 << 60)

TOKENIZER = b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 2147483648}, "merges": []}}'

BOMBS: dict[str, tuple[Action, Action]] = {
    **{
        f"bomb{kind}{suffix}": (streams(compress), read_all)
        for kind in ((".txt", ".jsonl") if LONG else (".txt",))
        for suffix, compress in (
            (".gz", gzip.compress),
            (".xz", lzma.compress),
            (".zst", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
            *([(".bz2", bz2.compress)] if LONG else []),
        )
    },
    "bomb.tgz": (tgz, read_all),
    "line.jsonl": (holding(b'{"text": "' + PART * 17 + b'"}\n'), read_all),
    "element.json": (holding(b'[{"text": "' + PART * 20 + b'"}]'), read_all),
    "quote.csv": (holding(b'text\n"' + PART * 17), read_all),
    "quotes.csv": (holding(b"text,b\n" + b'"a\n",' * (3 * MIB if LONG else MIB // 8)), read_all),
    "deep.jsonl": (holding(b"[" * 100_000 + b"\n"), read_all),
    "deep.json": (holding(b"[" * 1_000_000), read_all),
    "digits.json": (holding(b"[" + b"1" * 100_000 + b"]"), read_all),
    "pax.tar": (holding(tar_header(tarfile.XHDTYPE, 1 << 30) + PART), read_all),
    "name.tar": (holding(tar_header(tarfile.GNUTYPE_LONGNAME, 1 << 30) + PART), read_all),
    "sparse.tar": (sparse, read_all),
    "page.parquet": (page, read_all),
    "buffer.arrow": (buffer, read_all),
    "nulls.arrow": (nulls, read_all),
    "shared.parquet": (shared_value, read_all),
    "shared.arrow": (shared_value, read_all),
    "params.npz": (npz, load_coders),
    "claim.npz": (npz_claim, load_coders),
    "strides": (strides, load_coders),
    "claim.npy": (holding(npy_header((1 << 40, 64)) + PART), open_foreign),
    "claim.safetensors": (holding(struct.pack("<Q", 1 << 62) + PART), open_foreign),
    "nothing.safetensors": (nothing, open_foreign),
    "deep-weights": (weights(b"[" * MIB), check_weights),
    "shape-weights": (weights(b'{"a": {"shape": 3}}'), check_weights),
    "tokenizer.json": (holding(TOKENIZER), lambda path: Vocabulary(path).piece(3)),
    "loop.gguf": (holding(b"GGUF" + ENDLESS_ARRAY + PART), gguf_facts),
}
"""Name of a file or folder → what makes it, what reads it."""


def said(path: Path, read: Callable[[Path], object]) -> list[Any]:
    """What a user would be told, the seconds that it took, and the process's peak of memory in MiB."""
    begun = time.perf_counter()
    try:
        message = f"read: {read(path)}"
    except PipelineError as error:
        message = error.message
    # not ru_maxrss, which begins with the parent's
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]
    return [message, round(time.perf_counter() - begun, 2), round(peak)]


def _apart(work: Callable[[], object], send: Connection | None = None) -> None:
    """Runs in a process of its own, forked from this one."""
    child = os.fork()
    if not child:
        try:
            result = work()
            if send is not None:
                send.send(result)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.waitpid(child, 0)


def main(folder: Path) -> None:
    found: dict[str, Any] = {}
    for name, (make, read) in BOMBS.items():
        path = folder / name
        if not LONG:
            make(path)
            found[name] = said(path, read)
            continue
        receive, send = multiprocessing.Pipe(duplex=False)
        _apart(lambda make=make, path=path: make(path))
        _apart(lambda read=read, path=path: said(path, read), send)
        found[name] = receive.recv() if receive.poll() else ["it crashed", 0, 0]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
