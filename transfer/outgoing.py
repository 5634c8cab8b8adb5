"""Sites of a cache for other programs: safetensors shards with everything known of each row, or a dataset in Arrow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from ..shared.cache import Cache, Flag
from ..shared.cache.files import write_file, write_json
from ..shared.console import Console, size
from ..shared.errors import UsageError
from ..shared.hook_names import to_hook_name
from .arrow import DatasetWriter

RECORD = "export.json"


@dataclass(frozen=True)
class Exported:
    """The folder that was written."""

    path: str
    to: str
    names: dict[str, str]
    rows: int
    files: int
    bytes: int
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The --json document."""
        return asdict(self)

    def __str__(self) -> str:
        names = ", ".join(site if site == name else f"{site} as {name}" for site, name in self.names.items())
        note = f"\n  {self.note}" if self.note else ""
        return f"{self.path}: {self.rows:,} rows of {names} in {self.files} files, {size(self.bytes)}{note}"


def export_sites(
    cache: Cache,
    sites: Sequence[str],
    out: Path,
    to: Literal["safetensors", "arrow"],
    console: Console | None = None,
) -> Exported:
    """Writes sites, all of them if none is given, shard by shard.

    safetensors: `activations-NNNNN-of-NNNNN.safetensors` with each site [rows, d] in its logical dtype, and tokens,
    doc_id, pos_in_doc, flags [sequences, ctx]. arrow: a Hugging Face dataset with one row per sequence, columns under
    TransformerLens's names where a site has one, and `token_ids`: SAELens's cached activations. Arrow has no bfloat16:
    its numbers are float32, which holds them exactly.

    Raises:
        UsageError: a site was not found, or `out` exists.
    """
    console = console or Console(quiet=True)
    chosen = list(sites) or list(cache.sites)
    widths = {site: cache.spec(site).width for site in chosen}
    names = {site: to_hook_name(site) if to == "arrow" else site for site in chosen}
    with new_folder(out) as folder, console.progress(cache.n_rows, "rows", "export") as progress:
        tokens = cache.has_tokens
        dataset = None
        if to == "arrow":
            dataset = DatasetWriter(folder, cache.ctx, {names[site]: d for site, d in widths.items()}, tokens)
        for shard in cache.shards:
            seqs = cache.layout.seqs_of(shard)
            rows = len(seqs) * cache.ctx
            acts = {names[site]: cache.chunk(site, shard)[:rows] for site in chosen}
            if dataset is None:
                file = folder / f"activations-{shard:05d}-of-{len(cache.shards):05d}.safetensors"
                write_file(file, [save({**acts, **_row_arrays(cache, seqs, tokens)}, {"ctx": str(cache.ctx)})])
            else:
                columns: dict[str, Any] = {
                    name: value.float().reshape(len(seqs), cache.ctx, -1).numpy() for name, value in acts.items()
                }
                if tokens:
                    columns["token_ids"] = cache.tokens[seqs.start : seqs.stop]
                dataset.add(columns)
            progress.advance(rows)
        if dataset is not None:
            dataset.finish()
        write_json(folder / RECORD, _record(cache, names, to))
        files = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".arrow")]
        total = sum(file.stat().st_size for file in files)
    padding = bool((cache.flags & np.uint8(Flag.PADDING)).any()) and to == "arrow"
    note = "padding rows are included as zeros" if padding else ""
    return Exported(str(out), to, names, cache.n_rows, len(files), total, note)


def _row_arrays(cache: Cache, seqs: range, tokens: bool) -> dict[str, Tensor]:
    arrays: dict[str, NDArray[Any]] = {"doc_id": cache.doc_id, "pos_in_doc": cache.pos_in_doc, "flags": cache.flags}
    if tokens:
        arrays["tokens"] = cache.tokens
    return {
        name: torch.from_numpy(values[seqs.start : seqs.stop].astype(np.uint8 if name == "flags" else np.int32))
        for name, values in arrays.items()
    }


def _record(cache: Cache, names: dict[str, str], to: str) -> dict[str, Any]:
    harvest = cache.config.get("harvest", {})
    return {
        "format": to,
        "cache": {"identity": cache.identity, "model": harvest.get("model"), "dataset": harvest.get("dataset")},
        "ctx": cache.ctx,
        "rows": cache.n_rows,
        "sites": {
            site: {
                "name": name,
                "width": cache.spec(site).width,
                "dtype": "float32" if to == "arrow" else cache.spec(site).logical_dtype,
                "module_path": cache.spec(site).module_path,
                "io": cache.spec(site).io,
            }
            for site, name in names.items()
        },
    }


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears under its name once the block is done; nothing is left of one that failed.

    Raises:
        UsageError: it exists already.
    """
    if out.exists():
        raise UsageError(f"{out} already exists", "choose another folder, or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
