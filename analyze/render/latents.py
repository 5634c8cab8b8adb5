"""Per-latent data beside the report: one JSON object per latent, and the reports' tables as Parquet."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.saved_report import SCHEMA, SCHEMA_VERSION
from ..result import plain
from ..subject.analysed import Analysed


def write_tables(folder: Path, one: Analysed) -> None:
    """The reports' `tables_on_disk`, as <name>.parquet; the metadata of each file has schema and version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for result in one.results.values():
        for name, columns in result.tables_on_disk.items():
            arrays = {
                key: values.astype(object) if values.dtype.kind == "U" else values for key, values in columns.items()
            }
            about = {"schema": SCHEMA, "schema_version": str(SCHEMA_VERSION), "table": name, "run": one.subject.name}
            pq.write_table(pa.table(arrays, metadata=about), folder / f"{name}.parquet", compression="zstd")


class LatentsFile:
    """latents.jsonl.gz: {"latent", "columns": {key: value}, "panels": {report: blocks}} per line, examples with
    their text.
    """

    def __init__(self, path: Path, one: Analysed) -> None:
        self.file = gzip.GzipFile(path, "wb", compresslevel=3, mtime=0)
        self.pieces = one.subject.vocabulary.pieces
        self.domains = one.subject.domains
        self.columns = [(column.key, column.values) for result in one.results.values() for column in result.columns]

    def __enter__(self) -> LatentsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, lines: str) -> None:
        """Add the lines of the next latents."""
        self.file.write(lines.encode())

    def lines(self, latents: range, panels: Sequence[list[dict[str, Any]]]) -> str:
        """The lines of some latents, from their panels."""
        part = slice(latents.start, latents.stop)
        columns = [(key, plain(values[part])) for key, values in self.columns]
        return "".join(self._line(latent, panel, {key: values[n] for key, values in columns})
                       for n, (latent, panel) in enumerate(zip(latents, panels, strict=True)))  # fmt: skip

    def _line(self, latent: int, panels: list[dict[str, Any]], columns: dict[str, Any]) -> str:
        by_report: dict[str, list[dict[str, Any]]] = {}
        for block in panels:
            by_report.setdefault(block["report"], []).append(self._spelt(block))
        return json.dumps({"latent": latent, "columns": columns, "panels": by_report}, ensure_ascii=False) + "\n"

    def _spelt(self, block: dict[str, Any]) -> dict[str, Any]:
        """A panel block with its examples as objects with text."""
        spelt = {key: value for key, value in block.items() if key != "report"}
        if block["type"] == "examples":
            unit = spelt.pop("unit")
            spelt["groups"] = [
                {"title": group["title"], "items": [self._example(item, unit) for item in group["items"]]}
                for group in block["groups"]
            ]
        return spelt

    def _example(self, item: list[Any], unit: float) -> dict[str, Any]:
        value, sequence, position, document, peak, tokens, heat, *_ = item
        pieces = self.pieces(tokens)
        return {
            "value": value,
            "sequence": sequence,
            "position": position,
            "document": document,
            **({"domain": self.domains[document]} if document in self.domains else {}),
            "peak": peak,
            "token": next((piece for piece in reversed(pieces[: peak + 1]) if piece), ""),
            "token_id": tokens[peak],
            "text": "".join(pieces),
            "tokens": pieces,
            "activations": [float(f"{h * unit:.4g}") if h else 0 for h in heat],
        }


def round_column(values: Any) -> list[Any]:
    """Column values for the page: four significant digits, NaN as null."""
    array = np.asarray(values)
    if array.dtype.kind in "UO":
        return [str(value) for value in array.tolist()]
    if array.dtype.kind in "iub":
        return [int(value) for value in array.tolist()]
    return [None if np.isnan(v) else float(f"{v:.4g}") for v in array.astype(np.float64).tolist()]
