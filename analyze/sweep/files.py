"""The files of a comparison: every run as CSV, the tables as Markdown, everything as JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from ...shared.cache.files import sync_folder, write_file
from .markdown import to_markdown


def to_csv(document: dict[str, Any]) -> str:
    """One line per run with every headline figure (`Figure.in_summary`) in full precision."""
    names = list(dict.fromkeys(key for run in document["runs"] for key in run))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(document["runs"])
    return text.getvalue()


def write_comparison(document: dict[str, Any], folder: Path) -> list[Path]:
    """comparison.csv, .md and .json in `folder`, in place of older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "comparison.csv": to_csv(document),
        "comparison.md": to_markdown(document),
        "comparison.json": json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n",
    }
    for name, text in texts.items():
        write_file(folder / name, [text.encode()])
    sync_folder(folder)
    return [folder / name for name in texts]
