"""A small file or folder of every kind that another program or a user may give, and what reads it."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from sparse_pipeline.exchange.facts import Facts
from sparse_pipeline.exchange.formats import FORMATS, Options, Part
from sparse_pipeline.exchange.load import load_coders
from sparse_pipeline.exchange.plain import Above, Gate, KLargest, Plain, Relu
from sparse_pipeline.harvest.data.documents import Columns
from sparse_pipeline.harvest.data.files import find
from sparse_pipeline.harvest.data.local import count_rows, documents
from sparse_pipeline.harvest.data.reading import Reading
from sparse_pipeline.models.files import refuse_damaged, stored_numbers
from sparse_pipeline.models.folder import DEMO_MODEL
from sparse_pipeline.models.weights import find_weights, gguf_facts
from sparse_pipeline.resolve import resolve
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.saved_report import open_report
from sparse_pipeline.transfer.opening import open_foreign
from tests.faults.fuzz import mutated
from tests.shared.cache.folders import contents

ROWS = [{"text": f"é {n} of many words, " * (n % 5), "label": n % 3, "ids": [n, 2, 3]} for n in range(40)]


@dataclass(frozen=True)
class Subject:
    """A file or folder, its bytes, and what reads it."""

    path: Path
    read: Callable[[Path], object]
    whole: dict[str, bytes]

    def damaged(self, rng: random.Random, into: Path) -> Path:
        """A copy with one of its files broken or changed. (Not in its place: a reader may have it mapped.)"""
        broken = rng.choice(list(self.whole))
        path = into / self.path.name
        for name, data in self.whole.items():
            file = path / name if name else path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(changed(name or path.name, data, rng) if name == broken else data)
        return path


def changed(name: str, data: bytes, rng: random.Random) -> bytes:
    """The file with a part of it replaced, and at times a bit flipped."""
    data = weights(data, rng) if name.endswith(".safetensors") and rng.random() < 0.6 else mutated(data, rng)
    if rng.random() < 0.3 and data:
        at = rng.randrange(len(data))
        data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data


def weights(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, of the right length."""
    length = int.from_bytes(data[:8], "little")
    header = mutated(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def read_documents(path: Path) -> None:
    """Every document, those that are bad passed over, and then not."""
    found = find(str(path), "train")
    count_rows(found.files)
    for on_bad_row in ("skip", "error"):
        for _ in documents(found.files, Columns("text"), Reading(on_bad_row)):
            pass


def read_activations(path: Path) -> None:
    foreign = open_foreign(path)
    for name in foreign.columns:
        foreign.read(name, 0, min(4, foreign.n_rows))


def read_model(path: Path) -> None:
    find_weights(str(path), "harvest.model")
    refuse_damaged(path, "harvest.model")
    stored_numbers(path)


def read_vocabulary(path: Path) -> None:
    vocabulary = Vocabulary(path)
    _ = (vocabulary.special, vocabulary.pieces(range(40)), vocabulary.label(3))


def read_report(path: Path) -> None:
    report = open_report(path)
    _ = report.figures
    for name in report.tables:
        _ = report.tables[name]


def subjects(folder: Path) -> dict[str, Subject]:
    """Name → subject."""
    makers: tuple[Callable[[Path], dict[str, Callable[[Path], object]]], ...]
    makers = (_documents, _coders, _activations, _models, _others)
    found = {}
    for make in makers:
        for name, read in make(folder).items():
            path = folder / name
            found[name] = Subject(path, read, contents(path) if path.is_dir() else {"": path.read_bytes()})
    return found


def _documents(folder: Path) -> dict[str, Callable[[Path], object]]:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = pa.Table.from_pylist(ROWS)
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.json").write_text(json.dumps(ROWS))
    (folder / "a.csv").write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS))
    (folder / "a.txt.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "a.jsonl.zst").write_bytes(pa.compress(lines.encode(), codec="zstd", asbytes=True))
    (folder / "a.txt").write_text(lines, encoding="utf-16")
    pq.write_table(table, folder / "a.parquet", compression="zstd", row_group_size=20)
    pq.write_table(table, folder / "b.parquet", compression="none", data_page_version="2.0")
    feather.write_feather(table, folder / "a.arrow", compression="zstd")
    with pa.ipc.new_stream(folder / "b.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=20)
    for name, mode in (("a.tar", "w"), ("a.tgz", "w:gz")):
        with tarfile.open(folder / name, mode) as archive:
            for number in range(3):
                member = tarfile.TarInfo(f"{'long' * 30}{number}.txt")
                member.size = len(lines)
                archive.addfile(member, io.BytesIO(lines.encode()))
    names = ("a.jsonl", "a.json", "a.csv", "a.txt.gz", "a.jsonl.zst", "a.txt", "a.tar", "a.tgz")
    return dict.fromkeys((*names, "a.parquet", "b.parquet", "a.arrow", "b.arrow"), read_documents)


def _coders(folder: Path) -> dict[str, Callable[[Path], object]]:
    torch.manual_seed(0)
    found: dict[str, Callable[[Path], object]] = {}
    acts = (KLargest(2), Above(torch.rand(16) + 0.1), Relu(), Gate(torch.rand(16), torch.rand(16)))
    for name, kind in FORMATS.items():
        if not kind.readable:
            continue
        for number, act in enumerate(acts):
            plain = Plain(torch.randn(16, 8), torch.randn(16), torch.randn(16, 8), torch.randn(8), None, act)
            tied = name != "circuit-tracer"
            plain = Plain(**{**vars(plain), "tied": tied})
            target = "layer_00.resid_post" if tied else "layer_00.mlp_out"
            source = target if tied else "layer_00.resid_mid"
            facts = Facts(source, target, model="google/gemma-2-2b", family="gemma2", name="c")
            path = folder / f"{name}-{number}"
            path.mkdir()
            if isinstance(act, kind.known(plain, Options())):
                kind.write([Part(plain, facts)], path, Options())
                found[path.name] = load_coders
    path = folder / "gemma-scope-npz"
    path.mkdir()
    jump = Plain(**{**vars(plain), "activation": acts[1]})
    FORMATS["gemma-scope"].write([Part(jump, facts)], path, Options(version=1))
    return {**found, path.name: load_coders}


def _activations(folder: Path) -> dict[str, Callable[[Path], object]]:
    from datasets import Dataset

    acts = np.random.default_rng(0).normal(size=(6, 4, 8)).astype(np.float32)
    np.save(folder / "acts.npy", acts)
    torch.save({"a": torch.from_numpy(acts), "tokens": torch.arange(24).reshape(6, 4)}, folder / "acts.pt")
    save_file({"a": torch.from_numpy(acts), "tokens": torch.arange(24).reshape(6, 4)}, folder / "acts.safetensors")
    Dataset.from_dict({"a": acts.tolist(), "token_ids": [[1, 2, 3, 4]] * 6}).save_to_disk(str(folder / "dataset"))
    return dict.fromkeys(("acts.npy", "acts.pt", "acts.safetensors", "dataset"), read_activations)


def _models(folder: Path) -> dict[str, Callable[[Path], object]]:
    from gguf import GGUFWriter

    (folder / "model").mkdir()
    save_file({"model.a": torch.ones(3, 4), "model.b": torch.ones(2)}, folder / "model/model.safetensors")
    index = {"weight_map": {"model.a": "model.safetensors", "model.b": "model.safetensors"}}
    (folder / "model/model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model/config.json").write_text('{"model_type": "gemma2", "hidden_size": 4}')
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "../model", "peft_type": "LORA", "r": 4})
    )
    writer = GGUFWriter(folder / "m.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_uint32("general.file_type", 1)
    writer.add_tensor("a", np.ones((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "tokenizer.json").write_bytes((DEMO_MODEL / "tokenizer.json").read_bytes())
    return {
        "model": read_model,
        "adapter": lambda path: find_weights(str(path), "harvest.model"),
        "m.gguf": gguf_facts,
        "tokenizer.json": read_vocabulary,
    }


def _others(folder: Path) -> dict[str, Callable[[Path], object]]:
    figure: dict[str, Any] = dict.fromkeys(("with_bos", "without_massive", "null", "better"))
    figure |= {"label": "FVU", "value": 0.5, "interval": [0.4, 0.6], "definition": "…"}
    table = {"key": "t", "columns": [{"label": "a"}, {"label": "b"}], "rows": [[1, "x"], [None, "y"]]}
    run = {"name": "r", "folder": "r", "trained": True, "facts": {"path": "runs/r"}}
    run |= {"reports": {"reconstruction": {"figures": {"fvu": figure}, "tables": [table]}}}
    (folder / "report/r").mkdir(parents=True)
    document = {"schema": "sparse-coder-analysis", "schema_version": 1, "runs": [run], "comparison": None}
    (folder / "report/report.json").write_text(json.dumps(document))
    pq.write_table(pa.table({"latent": [0, 1], "density": [0.1, 0.2]}), folder / "report/r/latents.parquet")
    settings = "harvest: {tokens: 1000, sites: [layer_01.resid_mid]}\ntrain: &a\n  coder: {latents: 64, k: 4}\n"
    (folder / "settings.yaml").write_text(settings + "  penalties: {ortsae: {weight: 0.25}}\n")
    return {"report": read_report, "settings.yaml": lambda path: resolve((str(path),), ())}
