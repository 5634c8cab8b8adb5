"""Per-latent data beside the report: one JSON object per latent, and the reports' tables as Parquet."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.result import plain

if TYPE_CHECKING:
    from analyze.run import Analysed


def write_tables(folder: Path, one: Analysed) -> None:
    """Every table that the reports want on disk, as <name>.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for result in one.results.values():
        for name, columns in result.tables_on_disk.items():
            arrays = {key: values.astype(object) if values.dtype.kind == "U" else values for key, values in columns.items()}
            pq.write_table(pa.table(arrays), folder / f"{name}.parquet", compression="zstd")


def write_latents(path: Path, one: Analysed) -> None:
    """{"latent", "columns": {key: value}, "panels": {report: blocks}} for each latent, examples spelt out as text."""
    piece = one.subject.vocabulary.piece
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=4) as file:
        for latent in range(one.subject.n_latents):
            columns = {
                column.key: plain(column.values[latent])
                for result in one.results.values()
                for column in result.columns
            }
            panels = {
                name: [_spelt(block, piece) for block in result.panel(latent)]
                for name, result in one.results.items()
                if result.panel is not None
            }
            json.dump({"latent": latent, "columns": columns, "panels": panels}, file, ensure_ascii=False)
            file.write("\n")


def _spelt(block: dict[str, Any], piece: Any) -> dict[str, Any]:
    """A panel block with its examples as objects with text."""
    if block["type"] != "examples":
        return block
    groups = []
    for group in block["groups"]:
        items = []
        for value, sequence, position, document, peak, tokens, heat in group["items"]:
            pieces = [piece(token) for token in tokens]
            items.append(
                {
                    "value": value,
                    "sequence": sequence,
                    "position": position,
                    "document": document,
                    "token": pieces[peak],
                    "token_id": tokens[peak],
                    "text": "".join(pieces),
                    "peak": peak,
                    "tokens": pieces,
                    "activations": [round(h / 99 * block["max"], 4) for h in heat] if heat else [],
                }
            )
        groups.append({"title": group["title"], "items": items})
    return {"type": "examples", "max": block["max"], "groups": groups}


def round_column(values: Any) -> list[Any]:
    """Column values for the page: four significant digits, NaN as null."""
    array = np.asarray(values)
    if array.dtype.kind in "UO":
        return [str(value) for value in array.tolist()]
    if array.dtype.kind in "iub":
        return [int(value) for value in array.tolist()]
    return [None if np.isnan(v) else float(f"{v:.4g}") for v in array.astype(np.float64).tolist()]
