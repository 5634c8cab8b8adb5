"""Hugging Face datasets on disk, the format of SAELens's cached activations: one column per hook, and `token_ids`.

A row of the dataset is a sequence, [ctx, d], or a single vector, [d].
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..shared.columnar import arrow_batches
from ..shared.errors import DataError
from ..shared.untrusted import read_object
from .foreign import Column, Foreign, token_name

SETTINGS = "cache_activations_runner_cfg.json"
"""What SAELens's runner may leave beside a dataset."""


def is_dataset(folder: Path) -> bool:
    """Whether `datasets.load_from_disk` reads the folder."""
    return (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()


def open_dataset(folder: Path) -> Foreign:
    """The columns of a dataset.

    Raises:
        DataError: it cannot be read, has no column of activations, or its columns have different shapes.
    """
    import pyarrow as pa
    from datasets import load_from_disk

    try:
        for file in sorted(folder.glob("*.arrow")):
            for _ in arrow_batches(file):
                pass
        read_object(folder / "state.json"), read_object(folder / "dataset_info.json")
        dataset = load_from_disk(str(folder)).with_format("numpy")
        first: Mapping[str, Any] = dataset[0]
    except (OSError, ValueError, TypeError, AttributeError, LookupError, pa.ArrowException) as error:
        raise DataError(f"{folder} cannot be read as a dataset: {error}") from None
    samples = {name: np.asarray(first[name]) for name in dataset.column_names}
    floats = {name: one for name, one in samples.items() if one.dtype.kind == "f" and one.ndim in (1, 2)}
    if not floats:
        shapes = ", ".join(f"{name} {one.dtype} {list(one.shape)}" for name, one in samples.items())
        raise DataError(f"{folder}: no column is [ctx, d] or [d] floating-point numbers: found {shapes}")
    lengths = {name: one.shape[0] if one.ndim == 2 else None for name, one in floats.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{folder}: its columns have sequences of different lengths: {lengths}")
    ctx = next(iter(lengths.values()))
    each, n = ctx or 1, len(dataset)
    ids: dict[str, NDArray[np.int64]] = {}
    for name in filter(token_name, samples):
        values = np.asarray(dataset[:][name])
        if values.size != n * each:
            raise DataError(f"{folder}: {name} has {values.size:,} entries, expected {n * each:,}")
        ids["tokens"] = values.reshape(-1).astype(np.int64)

    def read(name: str, start: int, stop: int) -> Tensor:
        low, high = start // each, -(-stop // each)
        block = np.asarray(dataset[low:high][name])
        if block.dtype == object or block.shape[1:] != samples[name].shape:
            raise DataError(f"{folder}: {name} changes its shape within rows {low} to {high}")
        rows = torch.from_numpy(np.ascontiguousarray(block)).reshape(-1, block.shape[-1])
        return rows[start - low * each : stop - low * each]

    return Foreign(
        format="datasets",
        columns={name: Column(one.shape[-1], torch.from_numpy(one).dtype) for name, one in floats.items()},
        n_rows=n * each,
        ctx=ctx,
        ids=ids,
        read=read,
        files=tuple(sorted(folder.glob("*.arrow"))),
        model=_model(folder),
        ignored=tuple(name for name in samples if name not in floats and not token_name(name)),
    )


def _model(folder: Path) -> str | None:
    """The model's name in SAELens's settings; None where not found."""
    file = folder / SETTINGS
    try:
        found = read_object(file).get("model_name") if file.is_file() else None
    except DataError:
        return None
    return str(found) if found else None


class DatasetWriter:
    """Writes a dataset part by part; `datasets.load_from_disk` and SAELens read it as one.

    Args:
        folder: to write, empty.
        ctx: rows of a sequence.
        widths: column → d.
        tokens: write `token_ids`.
    """

    def __init__(self, folder: Path, ctx: int, widths: Mapping[str, int], tokens: bool) -> None:
        from datasets import Array2D, Features, Sequence, Value

        self.folder, self.ctx = folder, ctx
        columns: dict[str, Any] = {name: Array2D(shape=(ctx, d), dtype="float32") for name, d in widths.items()}
        if tokens:
            columns["token_ids"] = Sequence(Value("int32"), length=ctx)
        self.features = Features(columns)
        self.parts = 0

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """The next sequences: column → [sequences, ctx, d], and token_ids [sequences, ctx]."""
        from datasets import Dataset
        from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        part = self.folder / f".part-{self.parts:05d}"
        hidden = are_progress_bars_disabled()
        disable_progress_bars()  # the export shows one of its own
        try:
            Dataset.from_dict(dict(columns), features=self.features).save_to_disk(str(part), num_shards=1)
        finally:
            if not hidden:
                enable_progress_bars()
        self.parts += 1

    def finish(self) -> None:
        """Joins the parts, without rewriting their data."""
        files = []
        for number in range(self.parts):
            part = self.folder / f".part-{number:05d}"
            state = json.loads((part / "state.json").read_text(encoding="utf-8"))
            (data,) = (entry["filename"] for entry in state["_data_files"])
            name = f"data-{number:05d}-of-{self.parts:05d}.arrow"
            (part / data).rename(self.folder / name)
            files.append({"filename": name})
            if number == 0:
                shutil.copy2(part / "dataset_info.json", self.folder / "dataset_info.json")
                first = state
            shutil.rmtree(part)
        first |= {"_data_files": files, "_fingerprint": f"{hash_of(self.folder, files):016x}"}
        (self.folder / "state.json").write_text(json.dumps(first, indent=2), encoding="utf-8")


def hash_of(folder: Path, files: list[dict[str, str]]) -> int:
    """A number for the names and sizes of the parts: `datasets` tells cached results apart by it."""
    import hashlib

    sizes = "".join(f"{file['filename']}:{(folder / file['filename']).stat().st_size};" for file in files)
    return int.from_bytes(hashlib.sha256(sizes.encode()).digest()[:8], "big")
