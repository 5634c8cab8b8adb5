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
            arrays = {
                key: values.astype(object) if values.dtype.kind == "U" else values for key, values in columns.items()
            }
            pq.write_table(pa.table(arrays), folder / f"{name}.parquet", compression="zstd")


class LatentsFile:
    """latents.jsonl.gz: {"latent", "columns": {key: value}, "panels": {report: blocks}} per line, examples spelt
    out.
    """

    def __init__(self, path: Path, one: Analysed) -> None:
        self.file = gzip.GzipFile(path, "wb", compresslevel=3, mtime=0)
        self.piece = one.subject.vocabulary.piece
        self.domains = one.subject.domains
        self.columns = [
            (column.key, plain(column.values)) for result in one.results.values() for column in result.columns
        ]

    def __enter__(self) -> LatentsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, latent: int, panels: list[dict[str, Any]]) -> None:
        """Add the next latent."""
        by_report: dict[str, list[dict[str, Any]]] = {}
        for block in panels:
            by_report.setdefault(block["report"], []).append(self._spelt(block))
        columns = {key: values[latent] for key, values in self.columns}
        line = json.dumps({"latent": latent, "columns": columns, "panels": by_report}, ensure_ascii=False)
        self.file.write(line.encode() + b"\n")

    def _spelt(self, block: dict[str, Any]) -> dict[str, Any]:
        """A panel block with its examples as objects with text."""
        spelt = {key: value for key, value in block.items() if key != "report"}
        if block["type"] == "examples":
            spelt["groups"] = [
                {"title": group["title"], "items": [self._example(item, block["max"]) for item in group["items"]]}
                for group in block["groups"]
            ]
        return spelt

    def _example(self, item: list[Any], largest: float) -> dict[str, Any]:
        value, sequence, position, document, peak, tokens, heat = item
        pieces = [self.piece(token) for token in tokens]
        scale = largest / 99
        return {
            "value": value,
            "sequence": sequence,
            "position": position,
            "document": document,
            **({"domain": self.domains[document]} if document in self.domains else {}),
            "peak": peak,
            "token": pieces[peak],
            "token_id": tokens[peak],
            "text": "".join(pieces),
            "tokens": pieces,
            "activations": [round(h * scale, 4) if h else 0 for h in heat] if heat else [],
        }


def round_column(values: Any) -> list[Any]:
    """Column values for the page: four significant digits, NaN as null."""
    array = np.asarray(values)
    if array.dtype.kind in "UO":
        return [str(value) for value in array.tolist()]
    if array.dtype.kind in "iub":
        return [int(value) for value in array.tolist()]
    return [None if np.isnan(v) else float(f"{v:.4g}") for v in array.astype(np.float64).tolist()]
